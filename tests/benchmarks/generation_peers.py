"""The peers of ``generation.py``: transformers (torch) and CTranslate2 on the same random weights. Needs torch; see there.

    python tests/benchmarks/generation_peers.py DIR --task prepare|transformers|ctranslate2 --cell CELL

``prepare`` makes a Marian for each of the systems; the others print one JSON object: what ``generation.timed`` finds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from generation import Cell, timed


def prepare(cell: Cell) -> None:
    """A random Marian as transformers saves it, and converted by CTranslate2's own loader, in float32."""
    import torch
    from ctranslate2.converters.transformers import MarianMTLoader
    from transformers import MarianConfig, MarianMTModel

    torch.manual_seed(0)
    size, directory = cell.size, Path(cell.directory)
    sizes = {"layers": size.layers, "ffn_dim": size.F, "attention_heads": size.heads}
    config = MarianConfig(
        vocab_size=size.vocab,
        d_model=size.D,
        **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sizes.items()},
        activation_function="relu",
        max_position_embeddings=512,
        scale_embedding=True,
        static_position_embeddings=True,
        pad_token_id=size.vocab - 1,
        decoder_start_token_id=size.vocab - 1,
        eos_token_id=0,
        bos_token_id=0,
        forced_eos_token_id=None,
    )
    model = MarianMTModel(config).eval()
    model.save_pretrained(directory / "transformers")

    class Loader(MarianMTLoader):
        """The converter without a tokenizer: only the number of words matters."""

        def get_vocabulary(self, model, tokenizer):
            return ["</s>", *(f"t{i}" for i in range(1, size.vocab - 1))]

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


def transformers(cell: Cell):
    """The call to measure: tokens (batch, new)."""
    import torch
    from transformers import CompileConfig, MarianMTModel

    torch.set_num_threads(cell.threads)
    device, last, new = "cuda" if cell.on_gpu else "cpu", cell.size.vocab - 1, cell.size.new
    model = MarianMTModel.from_pretrained(Path(cell.directory) / "transformers").eval().to(device)
    ids = torch.tensor(cell.sources(), device=device)
    options = {"num_beams": cell.beams, "do_sample": False, "max_new_tokens": new, "min_new_tokens": new}
    options["bad_words_ids"] = [[last]]
    if cell.gpu:
        model.to(torch.bfloat16)
        options |= {"cache_implementation": "static", "compile_config": CompileConfig()}
        options["compile_config"]._compile_all_devices = cell.dry_run
        if cell.beams > 1:  # ``generate`` compiles the steps of greedy search by itself, but not those of beam search
            model.forward = torch.compile(model.forward)

    def call() -> np.ndarray:
        with torch.inference_mode():
            return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[:, 1:].cpu().numpy()

    return call


def ctranslate2(cell: Cell):
    """The call to measure: tokens (batch, new)."""
    import ctranslate2

    device, options = "cuda" if cell.on_gpu else "cpu", {"inter_threads": 1, "intra_threads": cell.threads}
    can = ctranslate2.get_supported_compute_types(device)
    compute_type = next(x for x in ("bfloat16", "float16", "float32") if x in can) if cell.gpu else "float32"
    path = str(Path(cell.directory) / "ctranslate2")
    translator = ctranslate2.Translator(path, device=device, compute_type=compute_type, **options)
    words, new = [[f"t{i}" for i in row] for row in cell.sources()], cell.size.new
    options = {"beam_size": cell.beams, "max_decoding_length": new, "min_decoding_length": new, "max_batch_size": 0}

    def call() -> np.ndarray:
        found = translator.translate_batch(words, **options)
        return np.array([[int(word[1:]) for word in row.hypotheses[0]] for row in found])

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--task", choices=("prepare", "transformers", "ctranslate2"), required=True)
    parser.add_argument("--cell", type=lambda text: Cell(*json.loads(text)), required=True)
    options = parser.parse_args()
    cell = options.cell
    if options.task == "prepare":
        return prepare(cell)
    found = timed({"transformers": transformers, "ctranslate2": ctranslate2}[options.task](cell), cell)
    if cell.on_gpu:
        import torch

        found["mib"] = torch.cuda.max_memory_allocated() / 2**20 if options.task == "transformers" else 0
    print(json.dumps(found))


if __name__ == "__main__":
    main()
