"""T5 v1.0 and v1.1, mT5 and ByT5; the buckets of relative positions."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from families.reference import SENTENCES, randomise, search_case, seq2seq, tokens_case, train, write

SIZES = {"d_model": 24, "d_kv": 7, "d_ff": 32, "num_heads": 4, "dropout_rate": 0.0}
SIZES |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
SIZES |= {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}


def piece_model(directory: Path, **options) -> None:
    """A SentencePiece unigram model of the sentences, with T5's special tokens, and the settings of the hub."""
    import sentencepiece

    model, rules = io.BytesIO(), directory / "rules.tsv"  # the usual rules take 240 kB
    rules.write_text("\n".join(["FB01\t66 69", "A0\t20", "3000\t20", "9\t20", "A\t20", "D\t20", "200B\t20", "FF21\t41"]) + "\n")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=230,
        normalization_rule_tsv=str(rules),
        hard_vocab_limit=False,
        minloglevel=2,
        **{"bos_id": -1, "pad_id": 0, "eos_id": 1, "unk_id": 2, **options},
    )
    rules.unlink()
    (directory / "spiece.model").write_bytes(model.getvalue())


def read_tokenizer(directory: Path, model_type: str, **settings):
    """As transformers reads a directory of the hub."""
    from transformers import AutoTokenizer

    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return AutoTokenizer.from_pretrained(directory)


def build(config, untied: bool, avoid: set[int]):
    """A trained model. Transformers ties the output of a new one in any case."""
    import transformers

    classes = {"t5": transformers.T5ForConditionalGeneration, "mt5": transformers.MT5ForConditionalGeneration}
    model = classes[config.model_type](config)
    if untied:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        model.all_tied_weights_keys.pop("lm_head.weight")
    randomise(model)
    with torch.no_grad():
        model.shared.weight.mul_(5)  # nothing scales embeddings up, and where they are the output's, that is scaled down
    model = train(model, avoid)
    ids = {name: getattr(config, name) for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id")}
    model.generation_config = transformers.GenerationConfig(max_length=24, num_beams=4, **ids)
    return model


def case(directory: Path, model, tokenizer, vocab: int, avoid: set[int], sides: dict | None = None) -> None:
    layers = {
        f"{side}_{i}": lambda model, side=side, i=i: getattr(model, side).block[i]
        for side in ("encoder", "decoder")
        for i in range(len(getattr(model, side).block))
    }
    arrays = seq2seq(model, layers, avoid) | search_case(model, tokenizer) | tokens_case(tokenizer, vocab, sides)
    for row in arrays["out:beam"]:  # which transformers fills up with the end token where the padding's id is 0
        row[(row == model.config.eos_token_id).cumsum(0) > 1] = model.config.pad_token_id
    write(directory, model, tokenizer, arrays)


def as_on_the_hub(directory: Path, files: Path | None, **config) -> None:
    """Older tokenizer files in the place of tokenizer.json; fields of config.json, None to be removed."""
    if files is not None:
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
            (directory / name).unlink(missing_ok=True)
        for path in files.iterdir():
            if path.name != "config.json":
                (directory / path.name).write_bytes(path.read_bytes())
    path = directory / "config.json"
    data = {**json.loads(path.read_text()), **config}
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not None}, indent=2) + "\n")


def buckets() -> dict[str, np.ndarray]:
    """The bucket of each distance from -300 to 300: both directions, several numbers of buckets and greatest distances."""
    from transformers.models.t5.modeling_t5 import T5Attention

    sizes = [(n, far) for n in (8, 32, 40, 64) for far in (20, 64, 128, 256) if far > n // 2]
    bucket = lambda *settings: T5Attention._relative_position_bucket(torch.arange(-300, 301), *settings)  # noqa: E731
    return {f"bucket:{both}_{n}_{far}": bucket(bool(both), n, far) for both in (0, 1) for n, far in sizes}


def t5(directory: Path) -> None:
    """v1.0, as on the hub: spiece.model alone, copies of the embedding, a bias that nothing reads, settings of tasks."""
    from safetensors.torch import load_file, save_file
    from transformers import T5Config

    with tempfile.TemporaryDirectory() as name:
        files = Path(name)
        piece_model(files)
        tokenizer = read_tokenizer(files, "t5", model_max_length=512)
        size, avoid = len(tokenizer), {0, 1, 2, *range(len(tokenizer) - 100, len(tokenizer))}
        model = build(T5Config(vocab_size=size, num_layers=2, **SIZES), False, avoid)
        case(directory, model, tokenizer, size, avoid)
        summary = {"prefix": "summarize: ", "num_beams": 4, "early_stopping": True}
        as_on_the_hub(directory, files, task_specific_params={"summarization": summary}, scale_decoder_outputs=None)
    tensors = load_file(directory / "model.safetensors")
    tensors |= {f"{side}.embed_tokens.weight": tensors["shared.weight"].clone() for side in ("encoder", "decoder")}
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.randn(8, 4, dtype=torch.float32)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with np.load(directory / "golden.npz") as arrays:
        np.savez_compressed(directory / "golden.npz", **arrays, **{k: x.numpy().astype(np.int8) for k, x in buckets().items()})


def t5_v1_1(directory: Path) -> None:
    """tokenizer.json, a gated unit, an output of its own that config.json tells, a decoder of another depth."""
    from transformers import T5Config

    with tempfile.TemporaryDirectory() as name:
        piece_model(Path(name))
        tokenizer = read_tokenizer(Path(name), "t5", extra_ids=10)
        size, avoid = len(tokenizer), {0, 1, 2, *range(len(tokenizer) - 10, len(tokenizer))}
        config = T5Config(
            vocab_size=size,
            num_layers=3,
            num_decoder_layers=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            **SIZES,
        )
        case(directory, build(config, True, avoid), tokenizer, size, avoid)
        as_on_the_hub(directory, None, tie_word_embeddings=False, scale_decoder_outputs=None)


def mt5(directory: Path) -> None:
    """spiece.model with a symbol of its own and no further tokens; config.json as transformers 5 writes it; unused rows."""
    from transformers import MT5Config

    with tempfile.TemporaryDirectory() as name:
        files = Path(name)
        piece_model(files, user_defined_symbols=["▁<extra_id_0>"])
        tokenizer = read_tokenizer(files, "mt5", tokenizer_class="T5Tokenizer", extra_ids=0)
        size, avoid = len(tokenizer), {0, 1, 2, 3}
        model = build(MT5Config(vocab_size=size + 12, num_layers=1, **SIZES), True, avoid | set(range(size, size + 12)))
        case(directory, model, tokenizer, size, avoid | set(range(size, size + 12)))
        as_on_the_hub(directory, files)


def byt5(directory: Path) -> None:
    from transformers import ByT5Tokenizer, T5Config

    config = T5Config(
        vocab_size=384,
        num_layers=2,
        num_decoder_layers=1,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        **SIZES,
    )
    avoid = {*range(35), *range(130, 384)}
    case(directory, build(config, True, avoid), ByT5Tokenizer(), 384, avoid)


def codet5(directory: Path) -> None:
    """v1.0 with RoBERTa's byte-level BPE, as CodeT5 has it, whose files are older than tokenizer.json; one layer is enough."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoTokenizer, T5Config

    with tempfile.TemporaryDirectory() as name:
        files, trained = Path(name), ByteLevelBPETokenizer()
        special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
        trained.train_from_iterator(
            SENTENCES * 20, vocab_size=330, min_frequency=2, special_tokens=special, show_progress=False
        )
        trained.save_model(str(files))
        extra = [f"<extra_id_{i}>" for i in range(9, -1, -1)]
        settings = {"tokenizer_class": "RobertaTokenizer", "additional_special_tokens": extra, "model_max_length": 512}
        (files / "tokenizer_config.json").write_text(json.dumps(settings))
        (files / "config.json").write_text(json.dumps({"model_type": "t5"}))
        tokenizer = AutoTokenizer.from_pretrained(files)
        size, avoid = len(tokenizer), {0, 1, 2, 3, 4, *range(len(tokenizer) - 10, len(tokenizer))}
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 0}
        model = build(T5Config(vocab_size=size, num_layers=1, **SIZES | ids), False, avoid)
        case(directory, model, tokenizer, size, avoid, {"source": "text"})
        as_on_the_hub(directory, files, scale_decoder_outputs=None)


CASES = {"t5": t5, "t5_v1_1": t5_v1_1, "mt5": mt5, "byt5": byt5, "codet5": codet5}
