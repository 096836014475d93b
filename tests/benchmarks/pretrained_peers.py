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
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, "a"))
    for name, model in models.items():
        model.save_pretrained(directory / name)
        transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(directory / name)


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
        max_new_tokens=NEW, min_new_tokens=NEW, num_beams=1, do_sample=False, eos_token_id=50_257, pad_token_id=50_257
    )

    @torch.no_grad()
    def once():
        # The search of all models: Whisper's own one wants a tokenizer's settings.
        ids = transformers.GenerationMixin.generate(
            model, input_features=values, decoder_input_ids=start, generation_config=settings
        )
        assert ids.shape == (1, NEW + 1), ids.shape

    return timed(once, calls)


def main() -> None:
    task, directory, calls, threads = json.loads(sys.argv[sys.argv.index("--cell") + 1])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if task == "prepare":
        prepare(Path(directory))
    else:
        print(json.dumps(measure_load(directory) if task == "load" else measure_whisper(directory, calls)))


if __name__ == "__main__":
    main()
