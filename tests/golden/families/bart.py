"""BART, mBART, mBART-50, Pegasus, Blenderbot and BlenderbotSmall."""

from __future__ import annotations

import json
from pathlib import Path

from families.reference import SENTENCES, randomise, search_case, seq2seq, tokens_case, train, write

SIZES = {"d_model": 24, "max_position_embeddings": 160, "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
SIZES |= {f"{side}_layers": 2 for side in ("encoder", "decoder")}
SIZES |= {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
SIZES |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 40}
LAYERS = {
    f"{side}_{i}": lambda model, side=side, i=i: getattr(model.model, side).layers[i]
    for side in ("encoder", "decoder")
    for i in range(2)
}
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


def wiring(before: bool, embedding: bool, static: bool = False) -> dict[str, bool]:
    """What the published config.json say of the class, which CTranslate2 reads."""
    return {"normalize_before": before, "normalize_embedding": embedding, "static_position_embeddings": static}


def case(directory: Path, kind: str, tokenizer, ids: dict, config: dict, generation: dict, extra: int = 3) -> None:
    """A model of the class ``kind``, with some entries more than its tokenizer."""
    import transformers

    make = lambda what: getattr(transformers, f"{kind}{what}")  # noqa: E731
    avoid = {0, 1, 2, 3}
    size = len(tokenizer) + extra
    settings = make("Config")(vocab_size=size, **SIZES, **ids, **config, forced_eos_token_id=None)
    model = make("ForConditionalGeneration")(settings)
    learned = [p for name, p in randomise(model).named_parameters() if "embed_positions" in name and p.requires_grad]
    for table in learned:
        table.data.uniform_(-0.2, 0.2)
    train(model, avoid)
    model.generation_config = transformers.GenerationConfig(**{"max_length": 24, "num_beams": 4, **ids, **generation})
    arrays = seq2seq(model, LAYERS, avoid) | search_case(model, tokenizer) | tokens_case(tokenizer, size - extra)
    write(directory, model, tokenizer, arrays)


def byte_level(kind: str, size: int = 300, **options):
    """Byte-level BPE learned from the sentences, under the tokenizer class of a family."""
    import tokenizers
    import transformers

    trained = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trained.train_from_iterator(SENTENCES * 20, vocab_size=size, min_frequency=1, special_tokens=special, show_progress=False)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    vocab = {**model["vocab"], "<mask>": len(model["vocab"])}
    return getattr(transformers, f"{kind}Tokenizer")(vocab=vocab, merges=merges, **options)


def bart(directory: Path) -> None:
    """With the generation settings of the summaries' checkpoint."""
    generation = {
        **{"forced_bos_token_id": 0, "forced_eos_token_id": 2, "no_repeat_ngram_size": 3, "min_length": 6},
        **{"length_penalty": 2.0, "early_stopping": True},
    }
    case(directory, "Bart", byte_level("Bart"), IDS, {"scale_embedding": False, **wiring(False, True)}, generation)


CASES = {"bart": bart}
