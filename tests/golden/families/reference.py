"""What every family's tiny model needs: random weights, a directory as the hub has it, and what transformers computes with it.

A case is a directory NAME/ beside this package: the model as ``save_pretrained`` writes it, and golden.npz with

    in:source_ids in:source_mask in:target_ids in:target_mask    a ragged batch, right-padded
    out:logits out:hidden:NAME grad:NAME                         in float64 on the float32 parameters
    out:greedy out:beam                                          token ids of ``generate``, as float32 computes them
    tokens:SIDE tokens:SIDE_lengths                              ids of every string of tests/strings.py, one after the other
    text:json                                                    {"sources", "greedy", "beam", "decoded"}: text in and out
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from strings import SENTENCES, plain, strings  # noqa: F401

LENGTHS, TARGET_LENGTHS = (9, 1, 6, 4), (5, 7, 1, 3)


def randomise(model: torch.nn.Module, scale: float = 0.2) -> torch.nn.Module:
    """All parameters and buffers of numbers random, but positions: an untrained bias or norm would hide a wrong place."""
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if x.is_floating_point() and x.requires_grad | ("bias" in name) and "embed_positions" not in name:
                is_scale = "norm" in name.lower() and name.endswith("weight")
                x.copy_(torch.empty_like(x).uniform_(-scale, scale) + is_scale)
    return model.eval()


def train(model: torch.nn.Module, avoid: set[int], steps: int = 150, after: Callable = lambda: None) -> torch.nn.Module:
    """Seconds of training after ``randomise``, since a random model ends at once or never and says one word again and again.

    ``after`` each step something may be set back. Tables of positions stay as they are.

    Each word of the source is renamed and said 0, 1 or 2 times; a fifth of the words are noise, so that others stay likely.
    """
    c, parameters = model.config, {name: p for name, p in model.named_parameters() if "embed_positions" not in name}
    words = torch.tensor(sorted(set(range(c.vocab_size)) - avoid))
    optimizer = torch.optim.Adam(parameters.values(), lr=4e-3, betas=(0.9, 0.98))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1, (step + 1) / 50)
        picked = [torch.randint(len(words), (int(n),)) for n in torch.randint(1, 9, (64,))]
        rows = [torch.cat([words[i], torch.tensor([c.eos_token_id])]) for i in picked]
        said = [[words[(7 * int(j) + 1) % len(words)] for j in i for _ in range(int(j) % 3)] for i in picked]
        said = [[w if torch.rand(()) > 0.2 else words[torch.randint(len(words), ())] for w in row] for row in said]
        targets = [torch.tensor([*row, c.eos_token_id]) for row in said]
        pad = lambda rows, fill: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)  # noqa: E731
        real = pad([torch.ones(len(row)) for row in rows], 0).long()
        optimizer.zero_grad()
        read = pad([torch.cat([torch.tensor([c.decoder_start_token_id]), row[:-1]]) for row in targets], c.pad_token_id)
        batch = {"input_ids": pad(rows, c.pad_token_id), "attention_mask": real, "decoder_input_ids": read}
        model(**batch, labels=pad(targets, -100)).loss.backward()
        optimizer.step()
        after()
    return model.eval()


def ragged(lengths, vocab: int, end: int, avoid: set[int], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random sentences that end with ``end``: ids (B, N), right-padded, and the mask."""
    words = torch.tensor(sorted(set(range(vocab)) - avoid))
    ids = torch.full((len(lengths), max(lengths)), pad)
    for row, n in zip(ids, lengths):
        row[:n] = torch.cat([words[torch.randint(len(words), (n - 1,))], torch.tensor([end])])
    return ids, torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def seq2seq(model, layers: dict[str, torch.nn.Module], avoid: set[int]) -> dict[str, torch.Tensor]:
    """Logits, the output of each layer and gradients of an encoder-decoder in float64.

    Args:
      model: in float32.
      layers: our name of a layer -> function that finds it in a model.
      avoid: ids that are no words.
    """
    c, exact = model.config, copy.deepcopy(model).double()
    source, source_mask = ragged(LENGTHS, c.vocab_size, c.eos_token_id, avoid, c.pad_token_id)
    target, target_mask = ragged(
        TARGET_LENGTHS, getattr(c, "decoder_vocab_size", c.vocab_size), c.eos_token_id, avoid, c.pad_token_id
    )
    for module in exact.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # the padding's row learns like any other, where a decoder reads it first
    hidden, hooks = {}, []
    for name, find in layers.items():

        def keep(module, inputs, output, name=name):
            hidden[name] = output[0] if isinstance(output, tuple) else output

        hooks.append(find(exact).register_forward_hook(keep))
    read = torch.cat([torch.full((len(target), 1), c.decoder_start_token_id), target[:, :-1]], dim=1)
    logits = exact(input_ids=source, attention_mask=source_mask.long(), decoder_input_ids=read).logits
    loss = torch.nn.functional.cross_entropy(logits[target_mask], target[target_mask], reduction="sum") / len(target)
    loss.backward()
    for hook in hooks:
        hook.remove()
    real = {"encoder": source_mask, "decoder": target_mask}
    arrays = {"in:source_ids": source, "in:source_mask": source_mask, "in:target_ids": target, "in:target_mask": target_mask}
    arrays["out:logits"] = logits * target_mask[..., None]
    arrays |= {f"out:hidden:{name}": x * real[name.split("_")[0]][..., None] for name, x in hidden.items()}
    return arrays | {f"grad:{name}": p.grad for name, p in exact.named_parameters() if p.grad is not None}


def generated(model, tokenizer, sources: list[str], beams: int, alone: bool = False) -> dict[str, np.ndarray | list[str]]:
    """What ``generate`` makes of texts with the model's own defaults: the ids that are new, and the texts.

    ``alone`` each text is a batch, for a model that counts its prompt, and so the padding of a batch, in the lengths.
    """
    if alone:
        found = [generated(model, tokenizer, [source], beams) for source in sources]
        pad = lambda rows: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding(model))  # noqa: E731
        return {"ids": pad([one["ids"][0] for one in found]), "texts": [one["texts"][0] for one in found]}
    torch.set_num_threads(1)
    batch = tokenizer(sources, return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    before = 1 if model.config.is_encoder_decoder else batch["input_ids"].shape[1]
    ids = model.generate(**batch, num_beams=beams)[:, before:]
    return {"ids": ids, "texts": tokenizer.batch_decode(ids, skip_special_tokens=True)}


def padding(model) -> int:
    """What ``generate`` fills up with."""
    c = model.generation_config
    return c.eos_token_id if c.pad_token_id is None else c.pad_token_id


def neighbours(model, count: int = 3) -> list:
    """The model with another sixth digit in each parameter: what they do not agree on, the rounding decides."""
    models = [copy.deepcopy(model) for _ in range(count)]
    with torch.no_grad():
        for other in models:
            for p in other.parameters():
                p.mul_(1 + 1e-5 * torch.randn(p.shape))
    return models


def search_case(
    model, tokenizer, sources: list[str] | None = None, count: int = 24, alone: bool = False
) -> dict[str, np.ndarray]:
    """Greedy search and beam 4 on texts whose outputs do not hang on the last digit; ``alone`` as in ``generated``."""
    sources = sources or [text for text in (*SENTENCES, *strings(400)[80:]) if 0 < len(text) < 40]
    arrays, texts, kept = {}, {}, None
    models = [model, *neighbours(model)]
    found = {
        name: [generated(m, tokenizer, sources, beams, alone) for m in models]
        for name, beams in {"greedy": 1, "beam": 4}.items()
    }
    stable = [
        i
        for i in range(len(sources))
        if all(len({other["texts"][i] for other in runs}) == 1 for runs in found.values())
        and all(all(same(runs[0]["ids"][i], other["ids"][i], model) for other in runs) for runs in found.values())
    ]
    kept = stable[:count]
    print(f"{len(sources) - len(stable)} of {len(sources)} texts are left out")
    for name, runs in found.items():
        arrays[f"out:{name}"] = runs[0]["ids"][kept]
        texts[name] = [runs[0]["texts"][i] for i in kept]
    lengths = [int((row != padding(model)).sum()) for row in arrays["out:greedy"]]
    print("greedy lengths", sorted(lengths), "different outputs", len(set(texts["greedy"])))
    arrays["text:json"] = np.array(json.dumps({"sources": [sources[i] for i in kept], **texts}))
    return arrays


def same(first: torch.Tensor, second: torch.Tensor, model) -> bool:
    """Whether two rows hold the same tokens, whatever padding follows."""
    pad, n = padding(model), max(len(first), len(second))
    rows = [torch.nn.functional.pad(row, (0, n - len(row)), value=pad) for row in (first, second)]
    return bool((rows[0] == rows[1]).all())


def tokens_case(tokenizer, vocab: int, sides: dict[str, dict] | None = None) -> dict[str, np.ndarray]:
    """Ids of every string, for each side by the tokenizer's own keyword; and texts of random ids."""
    arrays = {}
    for side, keyword in (sides or {"source": "text", "target": "text_target"}).items():
        rows = tokenizer(**{keyword: strings()})["input_ids"]
        arrays[f"tokens:{side}"] = np.concatenate([np.array(row, np.int32) for row in rows])
        arrays[f"tokens:{side}_lengths"] = np.array([len(row) for row in rows], np.int32)
    rows = [torch.randint(vocab, (1 + i % 9,)).tolist() for i in range(200)]
    arrays["decode:json"] = np.array(json.dumps({"ids": rows, "texts": tokenizer.batch_decode(rows, skip_special_tokens=True)}))
    return arrays


def write(directory: Path, model, tokenizer, arrays: dict) -> None:
    """The directory of a case."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for name, value in arrays.items():
        if isinstance(value, torch.Tensor):
            value = value.detach().numpy()
            arrays[name] = value.astype({"f": np.float32, "i": np.int32, "b": np.bool_}[value.dtype.kind])
    np.savez_compressed(directory / "golden.npz", **arrays)
    for path in sorted(directory.iterdir()):
        print(f"{directory.name}/{path.name}  {path.stat().st_size:,} bytes")
