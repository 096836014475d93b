"""How far bfloat16 takes transformers' own logits from those of the golden directories: bf16.json, directory -> {"max", "rms"}.

The directories must be there. All parameters and all of the computation are in bfloat16, as ``from_pretrained`` makes them.
What reads sound hears DRAWS different noises: of one alone, the error is by chance 0.7 to 1.6 of another
implementation's.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

DRAWS = 16  # as in tests/test_rounding.py


def logits_of(model, golden: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of a directory's batch, whatever it reads."""
    c = model.config
    if "in:ids" in golden:
        types = {"token_type_ids": golden["in:types"].long()} if "in:types" in golden else {}
        said = model(input_ids=golden["in:ids"], attention_mask=golden["in:mask"].long(), **types)
        found = said.logits if "logits" in said else said.last_hidden_state
        return found[:, None] if found.ndim == 2 else found
    target = golden["in:target_ids"].long()
    if not c.is_encoder_decoder:
        return continued(model, golden)
    read = torch.cat([torch.full((len(target), 1), c.decoder_start_token_id), target[:, :-1]], dim=1)
    if "in:source_ids" not in golden:
        frames = np.random.default_rng(0).standard_normal((len(read) * DRAWS, 2 * c.max_source_positions, c.num_mel_bins))
        features = torch.from_numpy(frames.astype(np.float32)).transpose(1, 2).to(model.dtype)
        return model(input_features=features, decoder_input_ids=read.repeat(DRAWS, 1)).logits
    source, mask = golden["in:source_ids"].long(), golden["in:source_mask"].long()
    return model(input_ids=source, attention_mask=mask, decoder_input_ids=read).logits


def continued(model, golden: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of a decoder-only model, row by row, without padding."""
    rows = []
    for prompt, prompt_mask, target, mask in zip(
        *(golden[f"in:{side}_{x}"] for side in ("source", "target") for x in ("ids", "mask"))
    ):
        prompt, target = prompt[prompt_mask].long(), target[mask].long()
        read = torch.cat([prompt if len(prompt) else torch.tensor([model.config.bos_token_id]), target[:-1]])
        rows.append(model(input_ids=read[None]).logits[0, -len(target) :])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def bf16(directory: Path) -> None:
    """Writes the file beside the directories."""
    import transformers

    transformers.logging.set_verbosity_error()
    errors = {}
    for path in sorted(directory.parent.glob("*/*.npz")):
        if path.name not in ("golden.npz", "encoder.npz", "speech.npz"):
            continue
        kind = json.loads((path.parent / "config.json").read_text())["architectures"][0]
        kind = {"GPT2Model": "GPT2LMHeadModel"}.get(kind, kind)
        load = getattr(transformers, kind).from_pretrained
        model = load(path.parent, dtype=torch.bfloat16).eval()
        with np.load(path, allow_pickle=False) as arrays:
            golden = {key: torch.from_numpy(x) for key, x in arrays.items() if key.startswith(("in:", "out:logits"))}
        with torch.no_grad():
            found = logits_of(model, golden).float()
            hears = not {"in:ids", "in:source_ids"} & set(golden)
            wanted = logits_of(load(path.parent, dtype=torch.float32).eval(), golden) if hears else golden["out:logits"]
        mask = golden["in:mask"] if "in:mask" in golden else golden["in:target_mask"].repeat(DRAWS if hears else 1, 1)
        mask = mask if wanted.shape[1] == mask.shape[1] else torch.ones(wanted.shape[:2], dtype=torch.bool)
        off = (found - wanted)[mask]
        errors[path.parent.name] = {"max": off.abs().max().item(), "rms": off.square().mean().sqrt().item()}
        print(path.parent.name, errors[path.parent.name], "of", wanted[mask].square().mean().sqrt().item())
    directory.rmdir()
    path = directory.with_suffix(".json")
    path.write_text(
        json.dumps({name: {k: float(f"{x:.4g}") for k, x in e.items()} for name, e in errors.items()}, indent=1) + "\n"
    )


CASES = {"bf16": bf16}
