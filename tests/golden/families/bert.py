"""BERT, RoBERTa and DistilBERT: each with every head. What a directory holds beside the model is in encoder.npz:

in:ids in:mask in:types               a ragged batch of pairs, right-padded; types where the model has them
in:labels in:labels_mask              what the loss compares the logits with, and where
out:logits out:hidden:NAME grad:NAME  in float64 on the float32 parameters
out:left                              RoBERTa's logits of the batch padded on the left (of the others it counts padding)
out:embed:POOLING                     rows of length 1 of some texts, as sentence-transformers pools them
tokens:single tokens:pairs ...        ids and types of every string of tests/strings.py, and of pairs of them
text:json                             {"texts", "predictions"}: what the library's pipelines say
"""

from __future__ import annotations

import copy
import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from families.reference import SENTENCES, randomise, strings

LENGTHS = (9, 3, 6, 4)
HEADS = {
    "": "Model",
    "_mlm": "ForMaskedLM",
    "_classifier": "ForSequenceClassification",
    "_tokens": "ForTokenClassification",
}
LABELS = {0: "négatif", 1: "neutral", 2: "positive"}
COMMON = {"max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, **COMMON}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "max_position_embeddings": 40, "dropout": 0.0}
TEXTS = [text for text in (*SENTENCES, *strings(300)[80:]) if 0 < len(text) < 40][:24]


def wordpiece(directory: Path):
    """An uncased WordPiece vocabulary of the sentences, as BERT's vocab.txt."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizer

    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(SENTENCES, vocab_size=400, min_frequency=1, show_progress=False, limit_alphabet=200)
    tokenizer.save_model(str(directory))
    return BertTokenizer(str(directory / "vocab.txt"), do_lower_case=True)


def bytelevel(directory: Path):
    """A byte-level BPE of the sentences, as RoBERTa's."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(SENTENCES, vocab_size=400, min_frequency=2, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(directory))
    files = (str(directory / name) for name in ("vocab.json", "merges.txt"))
    return RobertaTokenizer(*files)


def pairs(size: int, tokenizer, types: bool) -> dict[str, torch.Tensor]:
    """Random pairs with the special tokens around them; what stands in the padding does not matter."""
    special = set(tokenizer.all_special_ids)
    words = torch.tensor(sorted(set(range(size)) - special))
    rows = [words[torch.randint(len(words), (n,))] for n in LENGTHS]
    start, end, pad = (getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad"))
    rows = [torch.cat([torch.tensor([start]), row, torch.tensor([end])]) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = torch.arange(ids.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
    found = {"in:ids": ids, "in:mask": mask}
    if types:
        cut = torch.tensor([len(row) // 2 for row in rows])[:, None]
        found["in:types"] = ((torch.arange(ids.shape[1])[None] >= cut) & mask).long()
    return found


def left(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.roll(row, int((~real).sum()), 0) for row, real in zip(x, mask)])


def numbers(model, layers: str, arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Logits, each layer's output and gradients in float64."""
    exact = copy.deepcopy(model).double()
    for module in exact.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
    ids, mask = arrays["in:ids"], arrays["in:mask"]
    types = {"token_type_ids": arrays["in:types"]} if "in:types" in arrays else {}
    hidden, hooks = {}, []
    for i, layer in enumerate(exact.get_submodule(layers)):

        def keep(module, inputs, output, i=i):
            hidden[f"encoder_{i}"] = output[0] if isinstance(output, tuple) else output

        hooks.append(layer.register_forward_hook(keep))
    said = exact(input_ids=ids, attention_mask=mask.long(), **types)
    logits = said.logits if "logits" in said else said.last_hidden_state
    logits = logits[:, None] if logits.ndim == 2 else logits
    whole = logits.shape[1] == 1
    labels = torch.randint(logits.shape[-1], logits.shape[:2])
    real = torch.ones_like(labels).bool() if whole else mask & (torch.rand(mask.shape) < 0.6)
    torch.nn.functional.cross_entropy(logits[real], labels[real], reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    arrays = {**arrays, "in:labels": labels, "in:labels_mask": real}
    arrays["out:logits"] = logits if whole else logits * mask[..., None]
    arrays |= {f"out:hidden:{name}": x * mask[..., None] for name, x in hidden.items()}
    if model.config.model_type == "roberta" and not whole:
        said = exact(input_ids=left(ids, mask), attention_mask=left(mask, mask).long())
        out = said.logits if "logits" in said else said.last_hidden_state
        arrays["out:left"] = out * left(mask, mask)[..., None]
    return arrays | {f"grad:{name}": p.grad for name, p in exact.named_parameters() if p.grad is not None}


def embedded(model, tokenizer) -> dict[str, torch.Tensor]:
    """Mean of the real tokens' states, and the first one's, each divided by its length."""
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
    pooled = {"mean": (hidden * mask).sum(1) / mask.sum(1), "cls": hidden[:, 0]}
    arrays = {f"out:embed:{name}": torch.nn.functional.normalize(x, dim=1) for name, x in pooled.items()}
    return arrays | {"text:json": np.array(json.dumps({"texts": TEXTS}))}


def said(model, tokenizer, ending: str) -> dict[str, np.ndarray]:
    """What the library's pipelines say of the texts."""
    from transformers import pipeline

    task = {"_classifier": "text-classification", "_tokens": "token-classification", "_mlm": "fill-mask"}[ending]
    texts = TEXTS
    if ending == "_mlm":  # which the pipeline does not truncate
        texts = [f"{text[: len(text) // 2]} {tokenizer.mask_token} {text[len(text) // 2 :]}" for text in TEXTS]
        texts = [text for text in texts if len(tokenizer(text)["input_ids"]) <= tokenizer.model_max_length]
    pipe, found = pipeline(task, model=model, tokenizer=tokenizer, device="cpu"), []
    for text in texts:
        if ending == "_classifier":
            found.append({row["label"]: row["score"] for row in pipe(text, top_k=None, truncation=True)})
        elif ending == "_tokens":
            found.append([[row["word"], row["entity"], float(row["score"])] for row in pipe(text, ignore_labels=[])])
        else:
            best = pipe(text, top_k=5)
            found.append({"text": best[0]["sequence"], "fills": [[row["token"], row["score"]] for row in best]})
    return {"text:json": np.array(json.dumps({"texts": texts, "predictions": found}))}


def token_ids(tokenizer) -> dict[str, np.ndarray]:
    """Of all strings, and of pairs of neighbours among some."""
    arrays, some = {}, strings()[:400]
    for name, rows in {"single": tokenizer(strings()), "pairs": tokenizer(some[:-1], some[1:])}.items():
        arrays[f"tokens:{name}"] = np.concatenate([np.array(row, np.int32) for row in rows["input_ids"]])
        arrays[f"tokens:{name}_lengths"] = np.array([len(row) for row in rows["input_ids"]], np.int32)
        if name == "pairs" and "token_type_ids" in rows:
            arrays["tokens:types"] = np.concatenate([np.array(row, np.int32) for row in rows["token_type_ids"]])
    return arrays


def case(family: str, ending: str, directory: Path) -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    name = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}[family]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = (bytelevel if family == "roberta" else wordpiece)(Path(folder))
        kind = getattr(transformers, f"{name}Config")
        labelled = {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}} if "Class" in HEADS[ending] else {}
        if family == "distilbert":
            config = kind(vocab_size=len(tokenizer), seq_classif_dropout=0.0, **DISTIL, **labelled)
        else:
            more = {"type_vocab_size": 1, "layer_norm_eps": 1e-5} if family == "roberta" else {}
            config = kind(vocab_size=len(tokenizer), **SIZES, **labelled, **more)
        config.extra_field = {"kept": True}
        tokenizer.model_max_length = 40 - (tokenizer.pad_token_id + 1 if family == "roberta" else 0)
        model = randomise(getattr(transformers, name + HEADS[ending])(config))
        layers = ("" if not ending else f"{family}.") + ("transformer.layer" if family == "distilbert" else "encoder.layer")
        arrays = numbers(model, layers, pairs(len(tokenizer), tokenizer, types=family == "bert"))
        arrays |= said(model, tokenizer, ending) if ending else embedded(model, tokenizer)
        if ending == "_mlm" and family != "distilbert":
            arrays |= token_ids(tokenizer)
        directory.mkdir(exist_ok=True)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        for key, value in arrays.items():
            if isinstance(value, torch.Tensor):
                value = value.detach().numpy()
                arrays[key] = value.astype({"f": np.float32, "i": np.int32, "b": np.bool_}[value.dtype.kind])
        np.savez_compressed(directory / "encoder.npz", **arrays)
        for path in sorted(directory.iterdir()):
            print(f"{directory.name}/{path.name}  {path.stat().st_size:,} bytes")


CASES = {family + ending: partial(case, family, ending) for family in ("bert", "roberta", "distilbert") for ending in HEADS}
