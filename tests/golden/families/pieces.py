"""Tokenizers without a tokenizer.json: their files in pieces/KIND/, and in pieces/tokens.npz what transformers makes of them.

    KIND KIND_lengths       ids of the first strings of tests/strings.py, one after the other
    KIND:decode             JSON {"ids", "texts"}: texts of random ids

For SentencePiece files the strings are those without what transformers' own rules for spaces change (``plain``); its mBART
leaves the files' normalisation out and is not asked.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from families.reference import SENTENCES, plain, strings
from families.t5 import piece_model

COUNT = 2000
FAIRSEQ = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}  # the numbers of its special pieces
KINDS = {
    "xlm_roberta": ("xlm-roberta", "XLMRobertaTokenizer", "sentencepiece.bpe.model"),
    "mbart50": ("mbart", "MBart50Tokenizer", "sentencepiece.bpe.model"),
    "pegasus": ("pegasus", "PegasusTokenizer", "spiece.model"),
    "blenderbot_small": ("blenderbot-small", "BlenderbotSmallTokenizer", "merges.txt"),
}


def words_and_merges(directory: Path) -> None:
    """BPE of lower-case words, its tokens spelled as ParlAI spells them."""
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=330, end_of_word_suffix="</w>", show_progress=False)
    backend.train_from_iterator([sentence.lower() for sentence in SENTENCES * 20], trainer)
    model = json.loads(backend.to_str())["model"]
    names = [name.removesuffix("</w>") if name.endswith("</w>") else f"{name}@@" for name in model["vocab"]]
    names = dict.fromkeys(["__null__", "__start__", "__end__", "__unk__", "__newln__", *names])
    (directory / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}, ensure_ascii=False))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"]))


def pieces(directory: Path) -> None:
    from transformers import AutoTokenizer

    arrays, rng = {}, np.random.default_rng(0)
    for kind, (model_type, name, file) in KINDS.items():
        folder = directory / kind
        folder.mkdir(exist_ok=True)
        if kind == "blenderbot_small":
            words_and_merges(folder)
        else:
            piece_model(folder, **({} if kind == "pegasus" else FAIRSEQ))
            (folder / "spiece.model").rename(folder / file)
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        (folder / "config.json").unlink()
        texts = strings(COUNT)
        rows = tokenizer(texts if kind == "blenderbot_small" else [plain(text) for text in texts])["input_ids"]
        arrays[kind] = np.concatenate([np.array(row, np.int16) for row in rows])
        arrays[f"{kind}_lengths"] = np.array([len(row) for row in rows], np.int16)
        ids = [rng.integers(len(tokenizer), size=1 + i % 9).tolist() for i in range(200)]
        said = {"ids": ids, "texts": tokenizer.batch_decode(ids, skip_special_tokens=True)}
        arrays[f"{kind}:decode"] = np.array(json.dumps(said))
    np.savez_compressed(directory / "tokens.npz", **arrays)
    print(f"pieces/tokens.npz  {(directory / 'tokens.npz').stat().st_size:,} bytes")


CASES = {"pieces": pieces}
