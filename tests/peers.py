"""What transformers and CTranslate2 make of a model directory: ``python peers.py DIRECTORY`` reads JSON texts, prints JSON.

Greedy search, by each system's own defaults for the rest; {"transformers": texts, "ctranslate2": texts or null}. With several
directories, of encoders: for each the numbers that transformers computes, (texts, tokens or 1, ...).

Of a model of sound the input is recordings, lists of samples, and the outputs are tokens.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import warnings

# What CTranslate2 is asked for: it has no Blenderbot.
CONVERTED = ("bart", "mbart", "marian", "m2m_100", "t5", "mt5", "pegasus")


def main(directory: str, texts: list[str]) -> dict:
    import torch
    import transformers

    torch.set_num_threads(1)
    kind = json.load(open(f"{directory}/config.json"))["architectures"][0]  # noqa: SIM115, PTH123
    model, tokenizer = (
        getattr(transformers, {"GPT2Model": "GPT2LMHeadModel"}.get(kind, kind)).from_pretrained(directory),
        transformers.AutoTokenizer.from_pretrained(directory),
    )
    if kind == "WhisperForConditionalGeneration":
        return heard(directory, tokenizer, model, texts)
    if not model.config.is_encoder_decoder:
        return continued(directory, tokenizer, model, texts)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    ids = model.generate(**batch, num_beams=1)
    found = {"transformers": tokenizer.batch_decode(ids, skip_special_tokens=True), "ctranslate2": None}
    if model.config.model_type in CONVERTED and importlib.util.find_spec("ctranslate2") is not None:
        found["ctranslate2"] = by_ctranslate2(directory, tokenizer, model, texts)
    return found


def heard(directory: str, tokenizer, model, sounds: list[list[float]]) -> dict:
    """The tokens that are said of recordings, up to the end token, in the language that the model finds or is told."""
    import numpy as np
    import transformers

    extractor, settings = transformers.WhisperFeatureExtractor.from_pretrained(directory), model.generation_config
    samples = [np.array(sound, np.float32) for sound in sounds]
    features = extractor(samples, sampling_rate=16_000, return_tensors="pt").input_features
    end = settings.eos_token_id
    rows = [[*row, end] for row in model.generate(features, num_beams=1).tolist()]
    found = {"transformers": [row[: row.index(end)] for row in rows], "ctranslate2": None}
    if importlib.util.find_spec("ctranslate2") is None:
        return found
    import ctranslate2

    with tempfile.TemporaryDirectory() as out:
        ctranslate2.converters.TransformersConverter(directory).convert(out, force=True)
        whisper = ctranslate2.models.Whisper(out, inter_threads=1, intra_threads=1)
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(features.numpy()))
        told = [[]] * len(sounds)
        if settings.is_multilingual:  # by the size of its vocabulary CTranslate2 would take a tiny model for one of English
            named, task = getattr(settings, "language", None), getattr(settings, "task", None) or "transcribe"
            found_ids = model.detect_language(features).tolist()
            languages = [named] * len(sounds) if named else tokenizer.convert_ids_to_tokens(found_ids)
            told = [[language, f"<|{task}|>"] for language in languages]
        prompts = [["<|startoftranscript|>", *tokens, "<|notimestamps|>"] for tokens in told]
        results = whisper.generate(view, prompts, beam_size=1, max_length=settings.max_length)
    found["ctranslate2"] = [[token for token in result.sequences_ids[0] if token != end] for result in results]
    return found


def continued(directory: str, tokenizer, model, texts: list[str]) -> dict:
    """What goes on after prompts, one at a time: lengths may count the prompt."""
    import torch

    prompts, said = [tokenizer(text)["input_ids"] for text in texts], []
    for prompt in prompts:
        ids = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), num_beams=1)
        said.append(tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True))
    found = {"transformers": said, "ctranslate2": None}
    known = type(model).__name__ in json.load(open(f"{directory}/config.json"))["architectures"]  # noqa: SIM115, PTH123
    plain = model.generation_config.repetition_penalty in (None, 1.0)
    if known and plain and importlib.util.find_spec("ctranslate2") is not None:
        import ctranslate2

        with tempfile.TemporaryDirectory() as out:
            ctranslate2.converters.TransformersConverter(directory).convert(out, force=True)
            generator = ctranslate2.Generator(out, inter_threads=1, intra_threads=1)
            start = [tokenizer.convert_ids_to_tokens(prompt) for prompt in prompts]
            # One by one: of a ragged batch it returns what the longer prompts have more.
            options = {"beam_size": 1, "max_length": 20, "include_prompt_in_result": False}
            results = [generator.generate_batch([tokens], **options)[0] for tokens in start]
        found["ctranslate2"] = [tokenizer.decode(r.sequences_ids[0], skip_special_tokens=True) for r in results]
    return found


def encoded(directory: str, texts: list[str]) -> list:
    """An encoder's logits, or its hidden states where there is no head; every parameter must come from the file."""
    import torch
    import transformers

    kind = json.load(open(f"{directory}/config.json"))["architectures"][0]  # noqa: SIM115, PTH123
    model, report = getattr(transformers, kind).from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        said = [model(**tokenizer(text, return_tensors="pt")) for text in texts]
    return [(out.logits if "logits" in out else out.last_hidden_state)[0].tolist() for out in said]


def by_ctranslate2(directory: str, tokenizer, model, texts: list[str]) -> list[str]:
    import ctranslate2

    with tempfile.TemporaryDirectory() as out:
        ctranslate2.converters.TransformersConverter(directory).convert(out, force=True)
        translator, settings = ctranslate2.Translator(out, inter_threads=1, intra_threads=1), model.generation_config
        source = [tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) for text in texts]
        first = settings.forced_bos_token_id
        if type(tokenizer).__name__ == "MBartTokenizer":  # whose decoder reads a language first, which is not its own to know
            first = model.config.decoder_start_token_id
        prefix = None if first is None else [[tokenizer.convert_ids_to_tokens(first)]] * len(texts)
        results = translator.translate_batch(
            source,
            prefix,
            beam_size=1,
            max_decoding_length=settings.max_length - 1,
            min_decoding_length=max((settings.min_length or 0) - 1, 0),
            no_repeat_ngram_size=settings.no_repeat_ngram_size or 0,
            max_input_length=0,
        )
    ids = [tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in results]
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    directory, *others = sys.argv[1:]
    texts = json.load(sys.stdin)
    print(json.dumps([encoded(each, texts) for each in (directory, *others)] if others else main(directory, texts)))
