"""BART, mBART, mBART-50, Pegasus, Blenderbot and BlenderbotSmall."""

from __future__ import annotations

import io
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


def case(
    directory: Path, kind: str, tokenizer, ids: dict, config: dict, generation: dict, extra: int = 3, steps: int = 150
) -> None:
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
    train(model, avoid, steps)
    model.generation_config = transformers.GenerationConfig(**{"max_length": 24, "num_beams": 4, **ids, **generation})
    arrays = seq2seq(model, LAYERS, avoid) | search_case(model, tokenizer) | tokens_case(tokenizer, size - extra)
    for name in ("out:greedy", "out:beam"):
        arrays[name] = padded(arrays[name], ids["eos_token_id"], ids["pad_token_id"])
    write(directory, model, tokenizer, arrays)


def padded(rows, end: int, pad: int):
    """Padding after the end, where transformers' beam search repeats the end if the padding's id is 0."""
    ended = (rows == end).cumsum(dim=1)
    return rows.where(ended - (rows == end).long() == 0, pad)


def byte_level(kind: str, special=("<s>", "<pad>", "</s>", "<unk>"), size: int = 300):
    """Byte-level BPE learned from the sentences, under the tokenizer class of a family."""
    import tokenizers
    import transformers

    trained = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    options = {"vocab_size": size, "min_frequency": 1, "special_tokens": list(special), "show_progress": False}
    trained.train_from_iterator(SENTENCES * 20, **options)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    vocab = {**model["vocab"], "<mask>": len(model["vocab"])}
    return getattr(transformers, f"{kind}Tokenizer")(vocab=vocab, merges=merges)


def bart(directory: Path) -> None:
    """With the generation settings of the summaries' checkpoint; CTranslate2 wants as many entries as tokens."""
    generation = {
        **{"forced_bos_token_id": 0, "forced_eos_token_id": 2, "no_repeat_ngram_size": 3, "min_length": 6},
        **{"length_penalty": 2.0, "early_stopping": True},
    }
    case(directory, "Bart", byte_level("Bart"), IDS, {"scale_embedding": False, **wiring(False, True)}, generation, extra=0)


def pieces(rule: str, size: int = 230) -> tuple[list[tuple[str, float]], bytes]:
    """A SentencePiece unigram model of the sentences: pieces with their scores but for the first three, and its file."""
    import sentencepiece

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=file,
        vocab_size=size,
        normalization_rule_name=rule,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    return [(model.id_to_piece(i), model.get_score(i)) for i in range(3, model.get_piece_size())], file.getvalue()


def mbart_vocabulary(codes: list[str]) -> list[tuple[str, float]]:
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    return [*special, *pieces("identity")[0], *((code, 0.0) for code in codes), ("<mask>", 0.0)]


def mbart(directory: Path) -> None:
    """Old style: what the decoder reads first is a language. Generation ends at the limit by itself."""
    from transformers import MBartTokenizer
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES as CODES

    tokenizer = MBartTokenizer(vocab=mbart_vocabulary(CODES), src_lang="en_XX", tgt_lang="ro_RO")
    ids = IDS | {"decoder_start_token_id": tokenizer.convert_tokens_to_ids("ro_RO")}
    generation = {"early_stopping": True, "forced_eos_token_id": 2, "num_beams": 5}
    config = {"scale_embedding": True, "activation_function": "gelu", **wiring(True, True)}
    case(directory, "MBart", tokenizer, ids, config, generation, extra=0, steps=400)


def mbart50(directory: Path) -> None:
    from transformers import MBart50Tokenizer
    from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as CODES

    # As the published files, this says what the beginning of a text is: CTranslate2 wants to know.
    tokenizer = MBart50Tokenizer(vocab=mbart_vocabulary(CODES), src_lang="de_DE", tgt_lang="fr_XX", **{"bos_token": "<s>"})
    generation = {
        **{"forced_bos_token_id": tokenizer.convert_tokens_to_ids("fr_XX"), "early_stopping": True, "forced_eos_token_id": 2},
        **{"num_beams": 5},
    }
    config = {
        "scale_embedding": True,
        "activation_function": "relu",
        "tokenizer_class": "MBart50Tokenizer",
        **wiring(True, True),
    }
    case(directory, "MBart", tokenizer, IDS, config, generation, extra=0, steps=400)


def pegasus(directory: Path) -> None:
    from transformers import PegasusTokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<mask_1>", 0.0), ("<mask_2>", 0.0)]
    unused = [(f"<unk_{i}>", -100.0) for i in range(2, 103)]
    tokenizer = PegasusTokenizer(vocab=[*special, *unused, ("<unk>", 0.0), *pieces("identity", 200)[0]])
    ids = {"bos_token_id": None, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    generation = {"length_penalty": 0.8, "num_beams": 8, "forced_eos_token_id": 1}
    config = {"scale_embedding": True, "activation_function": "relu", **wiring(True, False, static=True)}
    case(directory, "Pegasus", tokenizer, ids, config, generation, extra=0, steps=400)


def blenderbot(directory: Path) -> None:
    """What the user says is not said back in three words."""
    ids = {"bos_token_id": 1, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1}
    tokenizer = byte_level("Blenderbot", ("<pad>", "<s>", "</s>", "<unk>"))
    generation = {
        **{"encoder_no_repeat_ngram_size": 3, "no_repeat_ngram_size": 3, "length_penalty": 0.65, "min_length": 5},
        **{"num_beams": 10, "forced_eos_token_id": 2},
    }
    case(directory, "Blenderbot", tokenizer, ids, {"scale_embedding": True, **wiring(True, False)}, generation)


def blenderbot_small(directory: Path) -> None:
    """Under a tokenizer.json; that of the published model is in files of its own kind."""
    ids = {"bos_token_id": 1, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1}
    generation = {"length_penalty": 0.65, "num_beams": 10, "forced_eos_token_id": 2}
    config = {"scale_embedding": True, **wiring(False, True)}
    case(directory, "BlenderbotSmall", byte_level("Blenderbot", ("<pad>", "<s>", "</s>", "<unk>")), ids, config, generation)


CASES = {
    "bart": bart,
    "mbart": mbart,
    "mbart50": mbart50,
    "pegasus": pegasus,
    "blenderbot": blenderbot,
    "blenderbot_small": blenderbot_small,
}
