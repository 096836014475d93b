"""Marian and M2M-100."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

from families.reference import SENTENCES, randomise, search_case, seq2seq, tokens_case, train, write

SIZES = {"d_model": 24, "max_position_embeddings": 64, "dropout": 0.0, "attention_dropout": 0.0}
SIZES |= {f"{side}_layers": 2 for side in ("encoder", "decoder")}
SIZES |= {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
SIZES |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 40, "scale_embedding": True}
LAYERS = {
    f"{side}_{i}": lambda model, side=side, i=i: getattr(model.model, side).layers[i]
    for side in ("encoder", "decoder")
    for i in range(2)
}


def piece_model(size: int, rule: str) -> bytes:
    """A SentencePiece unigram model of the sentences."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=size,
        normalization_rule_name=rule,
        hard_vocab_limit=False,
        minloglevel=2,
        bos_id=-1,
        eos_id=0,
        unk_id=1,
    )
    return model.getvalue()


def marian_tokenizer(directory: Path):
    """One table of ids over two piece models, in another order than theirs, with a language token."""
    import sentencepiece
    from transformers import MarianTokenizer

    pieces = []
    for side, rule in (("source", "nmt_nfkc"), ("target", "identity")):
        content = piece_model(260 if side == "source" else 230, rule)
        (directory / f"{side}.spm").write_bytes(content)
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        pieces += [model.id_to_piece(i) for i in range(model.get_piece_size())]
    words = sorted(set(pieces) - {"</s>", "<unk>"})
    vocab = {token: i for i, token in enumerate(["</s>", "<unk>", *words[: len(words) * 9 // 10], ">>fra<<", "<pad>"])}
    (directory / "vocab.json").write_text(json.dumps(vocab))
    return MarianTokenizer(*(str(directory / name) for name in ("source.spm", "target.spm", "vocab.json")), model_max_length=64)


def marian(directory: Path) -> None:
    from transformers import GenerationConfig, MarianConfig, MarianMTModel

    with tempfile.TemporaryDirectory() as name:
        tokenizer = marian_tokenizer(Path(name))
        size, pad = len(tokenizer), tokenizer.pad_token_id
        ids = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": 0, "bos_token_id": None}
        config = MarianConfig(vocab_size=size, activation_function="swish", **SIZES, **ids, forced_eos_token_id=None)
        config.extra_field = {"kept": True}
        model = randomise(MarianMTModel(config))

        def zero() -> None:
            model.model.shared.weight.data[pad] = 0  # as in Marian's checkpoints, on which CTranslate2 relies

        zero()
        train(model, {0, 1, pad}, after=zero)
        model.generation_config = GenerationConfig(
            max_length=24, num_beams=4, bad_words_ids=[[pad]], forced_eos_token_id=0, **ids, renormalize_logits=False
        )
        arrays = seq2seq(model, LAYERS, avoid={0, 1, pad}) | search_case(model, tokenizer) | tokens_case(tokenizer, size)
        write(directory, model, tokenizer, arrays)


def m2m_100(directory: Path) -> None:
    """As published: pre-norm, ids 0 to 3 special, 100 languages after the table, positions from the padding id on."""
    import sentencepiece
    from transformers import GenerationConfig, M2M100Config, M2M100ForConditionalGeneration, M2M100Tokenizer
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

    with tempfile.TemporaryDirectory() as name:
        content = piece_model(230, "identity")
        (Path(name) / "sentencepiece.bpe.model").write_bytes(content)
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        words = [model.id_to_piece(i) for i in range(2, model.get_piece_size())]
        table = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words])}
        (Path(name) / "vocab.json").write_text(json.dumps(table))
        files = (str(Path(name) / file) for file in ("vocab.json", "sentencepiece.bpe.model"))
        languages = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]  # as special_tokens_map.json says on the hub
        tokenizer = M2M100Tokenizer(*files, src_lang="de", tgt_lang="fr", additional_special_tokens=languages)
        config = M2M100Config(
            vocab_size=len(table) + 100 + 8, activation_function="relu", encoder_layerdrop=0.0, decoder_layerdrop=0.0, **SIZES
        )
        model = train(randomise(M2M100ForConditionalGeneration(config)), avoid={0, 1, 2, 3})
        model.generation_config = GenerationConfig(
            max_length=24,
            num_beams=4,
            early_stopping=True,
            forced_bos_token_id=tokenizer.get_lang_id("fr"),
            decoder_start_token_id=2,
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
        )
        arrays = seq2seq(model, LAYERS, avoid={0, 1, 2, 3}) | search_case(model, tokenizer) | tokens_case(tokenizer, len(table))
        write(directory, model, tokenizer, arrays)


CASES = {"marian": marian, "m2m_100": m2m_100}
