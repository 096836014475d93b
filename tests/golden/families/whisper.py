"""Whisper, as multilingual models with 80 and 128 mel bands and as an English-only one, of windows of three seconds.

Beside what reference.py says, speech.npz in place of golden.npz holds, of the sounds of tests/tones.py,

    out:logits_of_sound            teacher-forced, from the samples on
    out:greedy out:beam            what ``generate`` says of short sounds
    long:json                      its segments, token times and languages of long ones
"""

from __future__ import annotations

import copy
import functools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from families.reference import neighbours, write

sys.path.insert(0, str(Path(__file__).parents[2]))
from strings import strings
from tones import RATE, WORDS, signals, speech

SECONDS = 3
FRAMES = 100 * SECONDS
STAMPS = FRAMES // 2 + 1
CONTROLS = ("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
LAYERS = [f"{side}_{i}" for side in ("encoder", "decoder") for i in range(2)]


def tokenizer_of(languages: tuple[str, ...]):
    """Byte-level BPE with the control tokens in their published order, and a token each 0.02 s."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers
    from transformers import WhisperTokenizerFast

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = ["".join(words) for words in WORDS.values()] * 3
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(backend.to_str())["model"]
    names = ["<|startoftranscript|>", *(f"<|{code}|>" for code in languages), "<|translate|>", "<|transcribe|>", *CONTROLS]
    vocab = {**model["vocab"], "<|endoftext|>": len(model["vocab"])}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = WhisperTokenizerFast(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.add_tokens([tokenizers.AddedToken(f"<|{0.02 * i:.2f}|>", special=False) for i in range(STAMPS)])
    return tokenizer


@functools.cache
def id_of(tokenizer, name: str) -> int:
    return tokenizer.convert_tokens_to_ids(f"<|{name}|>")


@functools.cache
def encoded(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def example(tokenizer, seed: int, multilingual: bool) -> tuple[np.ndarray, list[int], int]:
    """A window, what is to be read and said of it, and the number of tokens that are given."""
    rng = np.random.default_rng(seed)
    language = "de" if multilingual and rng.random() < 0.5 else "en"
    sound, phrases = speech(seed, SECONDS + rng.random() * 2, language)
    first = 0.02 * int(rng.integers(0, 40)) if rng.random() < 0.5 else 0.0
    sound = sound[int(first * RATE) :][: SECONDS * RATE]
    start, ids = id_of(tokenizer, "startoftranscript"), {name: id_of(tokenizer, name) for name in ("nospeech", "notimestamps")}
    if rng.random() < 0.05:
        return np.zeros(RATE, np.float32), [start, ids["nospeech"], tokenizer.eos_token_id], 1
    task, said = ("transcribe", language) if rng.random() < 0.7 else ("translate", "en")
    prompt = [start, *([id_of(tokenizer, language), id_of(tokenizer, task)] if multilingual else [])]
    stamped, tokens = rng.random() < 0.6, []
    for phrase in phrases:
        begin, end = round(phrase.start - first, 2), round(phrase.end - first, 2)
        if begin < 0 or begin >= SECONDS:
            continue
        text = encoded(tokenizer, "".join(WORDS[said][word] for word in phrase.words))
        whole = end <= SECONDS
        if not whole and not stamped:
            continue
        tokens += [id_of(tokenizer, f"{begin:.2f}"), *text] if stamped else text
        tokens += [id_of(tokenizer, f"{end:.2f}")] if stamped and whole else []
    prompt += [] if stamped else [ids["notimestamps"]]
    return sound, [*prompt, *tokens, tokenizer.eos_token_id], 1


def train_on_tones(model, tokenizer, extractor, multilingual: bool, steps: int):
    """Minutes of training, after which the model says nearly all it hears and when."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, betas=(0.9, 0.98))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 6e-3 * min(1, (step + 1) / 100, 2 * (1 - step / steps))
        batch = [example(tokenizer, 64 * step + i, multilingual) for i in range(24)]
        features = extractor([sound for sound, _, _ in batch], sampling_rate=RATE, return_tensors="pt").input_features
        longest = max(len(ids) for _, ids, _ in batch)
        ids = torch.full((len(batch), longest), -100)
        for row, (_, tokens, _) in zip(ids, batch):
            row[: len(tokens)] = torch.tensor(tokens)
        read = ids[:, :-1].clamp(min=0)
        loss = torch.nn.functional.cross_entropy(
            model(input_features=features, decoder_input_ids=read).logits.flatten(0, 1), ids[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(step, loss.item(), flush=True)
    return model.eval()


def begun_from(model, tokenizer, directory: Path):
    """The parameters of a model of other mel bands, which lie between those that it had, or of more control tokens."""
    from transformers import AutoTokenizer, WhisperForConditionalGeneration

    weights = WhisperForConditionalGeneration.from_pretrained(directory).state_dict()
    before = AutoTokenizer.from_pretrained(directory)
    name, bands = "model.encoder.conv1.weight", model.config.num_mel_bins
    wide = torch.nn.functional.interpolate(weights[name].transpose(1, 2), size=bands, mode="linear").transpose(1, 2)
    weights[name] = wide * weights[name].shape[1] / bands
    rows = before.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    for name in ("model.decoder.embed_tokens.weight", "proj_out.weight"):
        weights[name] = weights[name][rows]
    model.load_state_dict(weights)
    return model


def settings(tokenizer, languages: tuple[str, ...]):
    """generation_config.json, with what the published ones say."""
    from transformers import GenerationConfig

    ids = {
        name: id_of(tokenizer, name) for name in ("transcribe", "translate", "startoftranscript", "startofprev", "notimestamps")
    }
    end = tokenizer.eos_token_id
    more = {
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": id_of(tokenizer, code) for code in languages},
        "task_to_id": {name: ids[name] for name in ("transcribe", "translate")},
        "forced_decoder_ids": [[1, None], [2, ids["transcribe"]]],
    }
    return GenerationConfig(
        max_length=64,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=ids["startoftranscript"],
        suppress_tokens=[1, 2, 7, 8, *(ids[name] for name in ("transcribe", "translate", "startofprev"))],
        begin_suppress_tokens=[220, end],
        no_timestamps_token_id=ids["notimestamps"],
        prev_sot_token_id=ids["startofprev"],
        max_initial_timestamp_index=50,
        alignment_heads=[[0, 3], [1, 0], [1, 2]],
        return_timestamps=False,
        **(more if len(languages) > 1 else {"is_multilingual": False}),
    )


def teacher_forced(model, extractor, gradients: bool) -> dict:
    """Logits, the output of each layer and gradients in float64, of frames that are noise; logits of sounds."""
    c, exact = model.config, copy.deepcopy(model).double()
    for module in exact.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
    frames = np.random.default_rng(0).standard_normal((3, FRAMES, c.num_mel_bins)).astype(np.float32)
    lengths = torch.tensor([9, 4, 6])
    mask = torch.arange(9)[None] < lengths[:, None]
    target = torch.randint(c.eos_token_id, (3, 9))
    read = torch.cat([torch.full((3, 1), c.decoder_start_token_id), target[:, :-1]], dim=1)
    hidden, hooks = {}, []
    for name in LAYERS:
        side, number = name.split("_")

        def keep(module, inputs, output, name=name):
            hidden[name] = output[0] if isinstance(output, tuple) else output

        hooks.append(getattr(exact.model, side).layers[int(number)].register_forward_hook(keep))
    features = torch.from_numpy(frames).double().transpose(1, 2)
    logits = exact(input_features=features, decoder_input_ids=read).logits
    for hook in hooks:
        hook.remove()
    torch.nn.functional.cross_entropy(logits[mask], target[mask], reduction="sum").div(3).backward()
    arrays = {"in:target_ids": target, "in:target_mask": mask, "out:logits": logits * mask[..., None]}
    for name, x in hidden.items():  # every fifth position of the encoder
        arrays[f"out:hidden:{name}"] = x[:, ::5] if name.startswith("encoder") else x * mask[..., None]
    if gradients:
        fixed = "model.encoder.embed_positions.weight"  # which from_pretrained forgets
        arrays |= {f"grad:{n}": p.grad for n, p in exact.named_parameters() if p.grad is not None and n != fixed}
    sounds = [speech(1000 + i, 1.0 + i)[0] for i in range(3)]
    features = extractor(sounds, sampling_rate=RATE, return_tensors="pt").input_features
    with torch.no_grad():
        arrays["out:logits_of_sound"] = exact(input_features=features.double(), decoder_input_ids=read).logits * mask[..., None]
    return arrays


def features_case(bands: int) -> dict:
    """Every 61st frame of the published front end, of 30 s, and of all of a longer sound; and the filters."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=bands)
    arrays = {"out:filters": extractor.mel_filters.astype(np.float32)}
    for name, sound in signals().items():
        options = {"truncation": False, "padding": "longest"} if name == "long" else {}
        frames = extractor(sound, sampling_rate=RATE, return_tensors="np", **options).input_features[0].T
        arrays[f"out:frames:{name}"] = np.concatenate([frames[::61], frames[-1:]])
    return arrays


def features_of(extractor, sounds, **options):
    return extractor(sounds, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **options)


def language_of(seed: int, languages: tuple[str, ...]) -> str:
    return "de" if len(languages) > 1 and seed % 2 else "en"


def short_case(model, tokenizer, extractor, languages: tuple[str, ...], count: int = 12) -> dict:
    """Greedy search and beam 4 on short sounds whose outputs do not hang on the last digit; the languages found."""
    models, seeds = [model, *neighbours(model)], range(2000, 2024)
    sounds = [speech(seed, 1.4 + 0.1 * (seed % 17), language_of(seed, languages))[0] for seed in seeds]
    features = features_of(extractor, sounds).input_features
    found = {name: [m.generate(features, num_beams=beams) for m in models] for name, beams in {"greedy": 1, "beam": 4}.items()}
    rows = {name: [[strip(row, model) for row in run.tolist()] for run in runs] for name, runs in found.items()}
    stable = [i for i in range(len(sounds)) if all(len({tuple(run[i]) for run in runs}) == 1 for runs in rows.values())]
    kept = stable[:count]
    print(f"{len(sounds) - len(stable)} of {len(sounds)} sounds are left out")
    said = {name: [rows[name][0][i] for i in kept] for name in rows}
    for seed, tokens in zip(kept, said["greedy"]):
        print(2000 + seed, tokenizer.decode(tokens))
    if len(languages) > 1:
        said["languages"] = tokenizer.convert_ids_to_tokens(model.detect_language(features[kept]).tolist())
        options = {"language": "de", "task": "translate"}
        said["translated"] = [strip(row, model) for row in model.generate(features[kept], **options).tolist()]
    said |= {"seeds": [seeds[i] for i in kept]}
    said["texts"] = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in said["greedy"]]
    return {"short:json": np.array(json.dumps(said))}


def strip(row: list[int], model) -> list[int]:
    """A row of ``generate`` up to its end token."""
    end = model.generation_config.eos_token_id
    return row[: row.index(end)] if end in row else row


def long_case(model, tokenizer, extractor, languages: tuple[str, ...]) -> dict:
    """Segments and token times of sounds longer than a window, greedily, with and without the text of the window before."""
    cases = []
    models = [model, *neighbours(model, 1)]
    for seed in range(3000, 3016):
        inputs = features_of(
            extractor,
            speech(seed, 7.3 + 0.5 * (seed % 5), language_of(seed, languages))[0],
            truncation=False,
            padding="longest",
        )
        condition, runs = bool(seed & 2), []
        for m in models:
            found = m.generate(
                inputs.input_features,
                attention_mask=inputs.attention_mask,
                return_timestamps=True,
                return_segments=True,
                return_token_timestamps=True,
                temperature=0.0,
                condition_on_prev_tokens=condition,
                **({"language": language_of(seed, languages), "task": "transcribe"} if len(languages) > 1 else {}),
            )
            runs.append(
                [
                    {
                        "start": float(s["start"]),
                        "end": float(s["end"]),
                        "tokens": s["tokens"].tolist(),
                        "times": [round(float(t), 3) for t in s["token_timestamps"]],
                    }
                    for s in found["segments"][0]
                ]
            )
        if len({json.dumps([s["tokens"] for s in run]) for run in runs}) == 1:
            cases.append({"seed": seed, "condition": condition, "segments": runs[0]})
    for case in cases[:3]:
        print(case["seed"], [(s["start"], s["end"], tokenizer.decode(s["tokens"])) for s in case["segments"]])
    print(f"{len(cases)} of 16 long sounds are kept")
    return {"long:json": np.array(json.dumps(cases[:6]))}


def make(directory: Path, mels: int, languages: tuple[str, ...], steps: int, begin: str = "") -> None:
    from transformers import AutoTokenizer, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        tokenizer_of(languages).save_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=SECONDS)
    end, start = tokenizer.eos_token_id, id_of(tokenizer, "startoftranscript")
    ids = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    sides = {
        f"{side}_{name}": n
        for side in ("encoder", "decoder")
        for name, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    }
    positions = {"max_source_positions": FRAMES // 2, "max_target_positions": 64}
    config = WhisperConfig(vocab_size=len(tokenizer), num_mel_bins=mels, d_model=24, **sides, **positions, **ids)
    model = WhisperForConditionalGeneration(config)
    model = begun_from(model, tokenizer, directory.parent / begin) if begin else model
    model = train_on_tones(model, tokenizer, extractor, len(languages) > 1, steps)
    model.generation_config = settings(tokenizer, languages)
    arrays = teacher_forced(model, extractor, gradients=not begin) | features_case(mels)
    arrays |= short_case(model, tokenizer, extractor, languages) | long_case(model, tokenizer, extractor, languages)
    rows = tokenizer(strings(), add_special_tokens=False)["input_ids"] if not begin else []
    if rows:
        arrays["tokens:target"] = np.concatenate([np.array(row, np.int32) for row in rows])
        arrays["tokens:target_lengths"] = np.array([len(row) for row in rows], np.int32)
    extractor.save_pretrained(directory)
    write(directory, model, tokenizer, arrays)
    (directory / "golden.npz").rename(directory / "speech.npz")


CASES = {
    "whisper": lambda directory: make(directory, 80, ("en", "de", "fr"), 1500),
    "whisper_v3": lambda directory: make(directory, 128, ("en", "de", "fr"), 60, begin="whisper"),
    "whisper_en": lambda directory: make(directory, 80, ("en",), 100, begin="whisper"),
}
