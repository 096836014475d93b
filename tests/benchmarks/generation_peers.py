"""The peers of ``generation.py``: transformers (torch) and CTranslate2 on the same random weights. Needs torch; see there.

    python tests/benchmarks/generation_peers.py prepare DIR            a Marian-base model for each of the three systems
    python tests/benchmarks/generation_peers.py SYSTEM DIR BATCH BEAMS THREADS CALLS

The second prints one JSON object: seconds of the first call and of each later one, peak memory, tokens.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
from generation import LAYERS, NEW, VOCAB, D, F, sources


def prepare(directory: Path) -> None:
    """A random Marian of base size as transformers saves it, and converted by CTranslate2's own loader in float32."""
    import torch
    from ctranslate2.converters.transformers import MarianMTLoader
    from transformers import MarianConfig, MarianMTModel

    torch.manual_seed(0)
    sizes = {"layers": LAYERS, "ffn_dim": F, "attention_heads": 8}
    config = MarianConfig(
        vocab_size=VOCAB,
        d_model=D,
        **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sizes.items()},
        activation_function="relu",
        max_position_embeddings=512,
        scale_embedding=True,
        static_position_embeddings=True,
        pad_token_id=VOCAB - 1,
        decoder_start_token_id=VOCAB - 1,
        eos_token_id=0,
        bos_token_id=0,
        forced_eos_token_id=None,
    )
    model = MarianMTModel(config).eval()
    model.save_pretrained(directory / "transformers")

    class Loader(MarianMTLoader):
        """The converter without a tokenizer: only the number of words matters."""

        def get_vocabulary(self, model, tokenizer):
            return ["</s>", *(f"t{i}" for i in range(1, VOCAB - 1))]

        def set_config(self, config, model, tokenizer):
            config.eos_token, config.unk_token, config.decoder_start_token = "</s>", "t1", "</s>"

    loader = Loader()
    spec = loader.get_model_spec(model)
    loader.set_config(spec.config, model, None)
    loader.set_vocabulary(spec, loader.get_vocabulary(model, None))
    spec.validate()
    spec.optimize(quantization="float32")
    (directory / "ctranslate2").mkdir(parents=True, exist_ok=True)
    spec.save(str(directory / "ctranslate2"))


def transformers(directory: Path, batch: int, beams: int, threads: int):
    """The call to measure: tokens (batch, NEW)."""
    import torch
    from transformers import MarianMTModel

    torch.set_num_threads(threads)
    model = MarianMTModel.from_pretrained(directory / "transformers").eval()
    ids = torch.tensor(sources(batch))
    options = {"num_beams": beams, "do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}
    options["bad_words_ids"] = [[VOCAB - 1]]

    def call() -> np.ndarray:
        with torch.inference_mode():
            return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[:, 1:].numpy()

    return call


def ctranslate2(directory: Path, batch: int, beams: int, threads: int):
    """The call to measure: tokens (batch, NEW)."""
    import ctranslate2

    path = str(directory / "ctranslate2")
    translator = ctranslate2.Translator(path, device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads)
    words = [[f"t{i}" for i in row] for row in sources(batch)]
    options = {"beam_size": beams, "max_decoding_length": NEW, "min_decoding_length": NEW, "max_batch_size": 0}

    def call() -> np.ndarray:
        found = translator.translate_batch(words, **options)
        return np.array([[int(word[1:]) for word in row.hypotheses[0]] for row in found])

    return call


def main() -> None:
    system, directory, *numbers = sys.argv[1:]
    if system == "prepare":
        return prepare(Path(directory))
    batch, beams, threads, calls = map(int, numbers)
    call = {"transformers": transformers, "ctranslate2": ctranslate2}[system](Path(directory), batch, beams, threads)
    seconds = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        tokens = call()
        seconds.append(time.perf_counter() - start)
    assert tokens.shape == (batch, NEW), tokens.shape
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"first": seconds[0], "later": seconds[1:], "mib": memory, "tokens": tokens.tolist()}))


if __name__ == "__main__":
    main()
