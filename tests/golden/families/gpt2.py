"""GPT-2: with a head as OpenAI's files have it, and a GPT2Model alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch

from families.reference import SENTENCES, randomise, search_case, strings, tokens_case, write

SIZES = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 96}
SIZES |= {f"{place}_pdrop": 0.0 for place in ("resid", "embd", "attn")}
PROMPTS, TARGETS = (9, 0, 6, 1), (5, 7, 1, 3)
LEFT = {"padding_side": "left"}


def byte_level(directory: Path) -> None:
    """vocab.json and merges.txt, in which the end token has the last id."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(SENTENCES * 20, trainer)
    backend.model.save(str(directory))
    vocabulary = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    vocabulary["<|endoftext|>"] = len(vocabulary)
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")


def train(model, steps: int = 300):
    """Each word follows from the two before it, four times in five; the text ends after some words, twice in three."""
    c = model.config
    words, optimizer = c.vocab_size - 1, torch.optim.Adam(model.parameters(), lr=4e-3, betas=(0.9, 0.98))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1, (step + 1) / 50)
        rows = [torch.randint(words, (64,)), torch.randint(words, (64,))]
        for _ in range(14):
            follows = (7 * rows[-1] + rows[-2] % 3) % words
            noise = torch.randint(words, (64,))
            rows.append(torch.where(torch.rand(64) < 0.8, follows, noise))
        ids = torch.stack(rows, dim=1)
        ends = ((ids % 11 == 0) & (torch.rand(ids.shape) < 0.66))[:, :-1]
        ids[:, 1:][ends] = c.eos_token_id
        labels = torch.where(ids.eq(c.eos_token_id).cumsum(1) - ids.eq(c.eos_token_id).int() > 0, -100, ids)
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


def continued(model) -> dict[str, torch.Tensor]:
    """Logits, layers and gradients where targets go on after prompts, each row by itself, unpadded, in float64."""
    c, exact = model.config, copy.deepcopy(model).double()
    hidden = [[] for _ in exact.transformer.h]
    for kept, layer in zip(hidden, exact.transformer.h):
        layer.register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output))
    prompts = [torch.randint(c.vocab_size - 1, (n,)) for n in PROMPTS]
    targets = [torch.cat([torch.randint(c.vocab_size - 1, (n - 1,)), torch.tensor([c.eos_token_id])]) for n in TARGETS]
    logits, loss = [], 0.0
    for prompt, target in zip(prompts, targets):
        read = torch.cat([prompt if len(prompt) else torch.tensor([c.bos_token_id]), target[:-1]])
        logits.append(exact(input_ids=read[None]).logits[0, -len(target) :])
        loss = loss + torch.nn.functional.cross_entropy(logits[-1], target, reduction="sum") / len(targets)
    loss.backward()
    pad = lambda rows: torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)  # noqa: E731
    arrays = {"out:logits": pad(logits)}
    for side, rows in {"source": prompts, "target": targets}.items():
        arrays |= {f"in:{side}_ids": pad(rows), f"in:{side}_mask": pad([torch.ones(len(row)).bool() for row in rows])}
    for i, kept in enumerate(hidden):
        states = [x[0] if isinstance(x, tuple) else x for x in kept]
        arrays[f"out:hidden:layers_{i}"] = pad([x[0, -len(target) :] for x, target in zip(states, targets)])
    return arrays | {f"grad:{name}": p.grad for name, p in exact.named_parameters()}


def texts(tokenizer, most: int = 40) -> list[str]:
    """Prompts that leave room for an output."""
    return [text for text in (*SENTENCES, *strings(400)[80:]) if 0 < len(tokenizer(text)["input_ids"]) <= most]


def gpt2(directory: Path) -> None:
    """As openai-community/gpt2 is laid out: no prefix, the causal masks in the file, text by vocab.json and merges.txt."""
    from safetensors.torch import load_file, save_file
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    directory.mkdir(exist_ok=True)
    byte_level(directory)
    tokenizer = GPT2Tokenizer.from_pretrained(directory)
    size = len(tokenizer)
    config = GPT2Config(vocab_size=size, bos_token_id=size - 1, eos_token_id=size - 1, **SIZES)
    model = train(randomise(GPT2LMHeadModel(config)))
    padded = GPT2Tokenizer.from_pretrained(directory, **LEFT, **{"pad_token": "<|endoftext|>"})
    arrays = continued(model) | search_case(model, padded, texts(tokenizer)) | tokens_case(tokenizer, size, {"source": "text"})
    write(directory, model, tokenizer, arrays)
    (directory / "tokenizer.json").unlink()
    tensors = load_file(directory / "model.safetensors")
    n = SIZES["n_positions"]
    masks = {f"transformer.h.{i}.attn.bias": torch.tril(torch.ones(1, 1, n, n)) for i in range(2)}
    masks["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    tensors = {name.removeprefix("transformer."): x for name, x in {**tensors, **masks}.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def gpt2_model(directory: Path) -> None:
    """A GPT2Model by itself, of other choices; lengths that count the prompt, and penalties that see it."""
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    directory.mkdir(exist_ok=True)
    byte_level(directory)
    tokenizer = GPT2Tokenizer.from_pretrained(directory, **LEFT, **{"pad_token": "[PAD]"})
    size = len(tokenizer) + 3
    ids = {"bos_token_id": 5, "eos_token_id": size - 5, "pad_token_id": size - 4}
    config = GPT2Config(vocab_size=size, **SIZES, n_inner=40, activation_function="gelu", layer_norm_epsilon=1e-3, **ids)
    config.reorder_and_upcast_attn = True
    model = train(randomise(GPT2LMHeadModel(config)))
    model.generation_config = GenerationConfig(
        max_length=44, num_beams=3, repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=3, **ids
    )
    arrays = (
        continued(model)
        | search_case(model, tokenizer, texts(tokenizer, 36), alone=True)
        | tokens_case(tokenizer, size, {"source": "text"})
    )
    body = model.transformer
    body.generation_config = model.generation_config
    write(directory, body, tokenizer, arrays)
    model.generation_config.save_pretrained(directory)
    for name in ("vocab.json", "merges.txt"):
        (directory / name).unlink()


CASES = {"gpt2": gpt2, "gpt2_model": gpt2_model}
