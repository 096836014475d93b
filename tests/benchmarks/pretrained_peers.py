"""What ``pretrained.py`` runs of transformers, in a process of its own; and the random models."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from fresh import timed
from pretrained import NEW, memory


def prepare(directory: Path) -> None:
    """Marian's and Whisper-tiny's sizes with random weights, and a tokenizer that is never asked."""
    import tokenizers

    sizes = {"d_model": 512, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "max_position_embeddings": 512}
    sizes |= {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 6), ("attention_heads", 8))}
    marian = transformers.MarianConfig(
        vocab_size=58_101, pad_token_id=58_100, eos_token_id=0, decoder_start_token_id=58_100, **sizes
    )
    models = {
        "marian": transformers.MarianMTModel(marian),
        "whisper": transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(begin_suppress_tokens=None)),
    }
    models["whisper"].generation_config = transformers.GenerationConfig(
        is_multilingual=True, lang_to_id={"<|en|>": 50_259}, decoder_start_token_id=50_258, eos_token_id=50_257
    )
    # CTranslate2 looks for Whisper's control tokens by their names; the other words are never asked for.
    controls = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nocaptions|>", "<|notimestamps|>"]
    languages = ["<|en|>", *(f"<|language {i}|>" for i in range(98))]
    spoken = [*map(str, range(50_257)), "<|endoftext|>", "<|startoftranscript|>", *languages, *controls]
    for name, words in {"marian": ["a", "b"], "whisper": spoken}.items():
        models[name].save_pretrained(directory / name)
        vocabulary = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, words[0])
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(vocabulary))
        tokenizer.save_pretrained(directory / name)


def measure_load(directory: str) -> dict:
    before, start = memory(), time.perf_counter()
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory)
    total = sum(float(p.detach().flatten()[0]) for p in model.parameters())  # a file that is mapped must be read
    assert np.isfinite(total)
    return {"seconds": time.perf_counter() - start, "mib": memory() - before}


def measure_whisper(directory: str, calls: int) -> dict:
    model = transformers.WhisperForConditionalGeneration.from_pretrained(directory).eval()
    values = torch.randn(1, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    start = torch.full((1, 1), model.config.decoder_start_token_id)
    settings = transformers.GenerationConfig(
        decoder_start_token_id=50_258,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        num_beams=1,
        do_sample=False,
        eos_token_id=50_257,
        pad_token_id=50_257,
    )

    @torch.no_grad()
    def once():
        # The search of all models: Whisper's own one wants a tokenizer's settings.
        ids = transformers.GenerationMixin.generate(
            model, input_features=values, decoder_input_ids=start, generation_config=settings
        )
        assert ids.shape == (1, NEW + 1), ids.shape

    return timed(once, calls)


def measure_ctranslate2(directory: str, calls: int, threads: int) -> dict:
    import ctranslate2

    converted = Path(directory) / "ctranslate2"
    if not converted.exists():
        ctranslate2.converters.TransformersConverter(directory).convert(str(converted))
    model = ctranslate2.models.Whisper(str(converted), inter_threads=1, intra_threads=threads)
    values = ctranslate2.StorageView.from_array(np.random.default_rng(0).standard_normal((1, 80, 3000)).astype(np.float32))
    prompts = [["<|startoftranscript|>", "<|notimestamps|>"]]
    # It writes as many tokens as half of max_length.
    options = {"beam_size": 1, "max_length": 2 * NEW, "suppress_tokens": [50_257], "suppress_blank": False}

    def once():
        found = model.generate(values, prompts, **options)[0].sequences_ids[0]
        assert len(found) == NEW, len(found)

    return timed(once, calls)


def main() -> None:
    task, directory, calls, threads = json.loads(sys.argv[sys.argv.index("--cell") + 1])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if task == "prepare":
        prepare(Path(directory))
    elif task == "ctranslate2":
        print(json.dumps(measure_ctranslate2(directory, calls, threads)))
    else:
        print(json.dumps(measure_load(directory) if task == "load" else measure_whisper(directory, calls)))


if __name__ == "__main__":
    main()
