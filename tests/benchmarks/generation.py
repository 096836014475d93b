"""How fast the zoo generates, beside transformers (torch) and CTranslate2 on the same float32 weights of Marian's base size.

    python tests/benchmarks/generation.py DIR --peer-python PYTHON [--rounds 3] [--threads 2] [--batches 1,8,32] [--beams 1,4]

DIR keeps the random model (made on the first run). PYTHON has torch, transformers and ctranslate2; it may be that of another
environment. Each number comes from a process of its own, the systems in turn, round after round, on an idle machine:

  tokens/s     new tokens of all sentences over the seconds of a call, the median of all calls of all rounds, and their range
  first        seconds of the first call, compilation included (loading weights is not)
  MiB          the greatest resident memory of the process
  bound        what reading the decoder's weights once a step would cost at the machine's measured read bandwidth

A source of 32 tokens, 64 new tokens that no end token cuts short, greedy and beam search under transformers' length penalty 1.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

D, F, LAYERS, VOCAB, SOURCE, NEW = 512, 2048, 6, 59_514, 32, 64
SYSTEMS = ("zoo", "transformers", "ctranslate2")
# Read at each step: self-attention's four matrices, two of cross-attention's, the feed-forward pair, and the output's.
STEP_BYTES = 4 * (LAYERS * (6 * D * D + 2 * D * F) + VOCAB * D)


def sources(batch: int) -> np.ndarray:
    """(batch, SOURCE) random token ids, the same for every system."""
    return np.random.default_rng(0).integers(4, VOCAB - 2, (32, SOURCE))[:batch]


def torch_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Marian's tensors in transformers' names as the names of ``torch.nn.Transformer``, which ``zoo.transformer`` reads."""
    found = {"embedding.weight": tensors["model.shared.weight"]}
    for side, ours in (("encoder", "source_positions"), ("decoder", "target_positions")):
        found[f"{ours}.weight"] = tensors[f"model.{side}.embed_positions.weight"]
        norms = ["self_attn_layer_norm", "final_layer_norm"]
        norms[1:1] = ["encoder_attn_layer_norm"] if side == "decoder" else []
        for i in range(LAYERS):
            theirs, layer = f"model.{side}.layers.{i}.", f"transformer.{side}.layers.{i}."
            attentions = {"self_attn": "self_attn"} | ({"encoder_attn": "multihead_attn"} if side == "decoder" else {})
            for kind in ("weight", "bias"):
                for name, torch_name in attentions.items():
                    parts = [tensors[f"{theirs}{name}.{part}_proj.{kind}"] for part in "qkv"]
                    found[f"{layer}{torch_name}.in_proj_{kind}"] = np.concatenate(parts)
                    found[f"{layer}{torch_name}.out_proj.{kind}"] = tensors[f"{theirs}{name}.out_proj.{kind}"]
                for n in (1, 2):
                    found[f"{layer}linear{n}.{kind}"] = tensors[f"{theirs}fc{n}.{kind}"]
                for n, name in enumerate(norms, 1):
                    found[f"{layer}norm{n}.{kind}"] = tensors[f"{theirs}{name}.{kind}"]
    return found


def load(directory: Path):
    """(model, params) of the zoo with the weights that transformers saved."""
    import jax
    from safetensors.numpy import load_file

    from zoo.checkpoint.rules import from_reference
    from zoo.transformer import TransformerConfig
    from zoo.variants import abstract_params

    model = TransformerConfig(VOCAB, VOCAB, dropout=0.0, positions="learned", max_len=512).build()
    tensors = load_file(directory / "transformers" / "model.safetensors")
    positions = [f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")]
    tensors |= {name: marian_positions() for name in positions if name not in tensors}
    params = from_reference(torch_names(tensors), model.RULES, abstract_params(model.config))
    return model, jax.device_put(params)


def marian_positions(rows: int = 512) -> np.ndarray:
    """Marian's sinusoids as transformers computes them: sines in the first half, cosines in the second."""
    angle = np.arange(rows)[:, None] / 10_000 ** (2 * np.arange(D // 2) / D)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def measure_zoo(directory: Path, batch: int, beams: int, calls: int) -> dict:
    """What ``generation_peers.py`` measures of the others."""
    from zoo.core import Tokens
    from zoo.generate import Beam, Greedy, Rules, generate, penalty

    model, params = load(directory)
    source = Tokens(sources(batch).astype(np.int32), np.ones((batch, SOURCE), bool))
    rules = Rules(start_id=VOCAB - 1, pad_id=VOCAB - 1, end_id=0, min_len=NEW + 1)
    search = Beam(beams, penalty.huggingface(1.0)) if beams > 1 else Greedy()
    seconds = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        found = generate(model, params, source, max_len=NEW, search=search, rules=rules)
        seconds.append(time.perf_counter() - start)
    assert (found.length == NEW).all()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first": seconds[0], "later": seconds[1:], "mib": memory, "tokens": found.ids.tolist()}


def read_bandwidth(megabytes: int = 512) -> float:
    """Bytes a second of summing a large array, the best of ten."""
    import jax
    import jax.numpy as jnp

    x, total = jnp.ones((megabytes * 250_000,)), jax.jit(jnp.sum)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(total(x))
        seconds.append(time.perf_counter() - start)
    return x.nbytes / min(seconds)


def run(python: str, arguments: list[str], threads: int) -> dict:
    """The JSON that a process of its own prints, on the first ``threads`` cores."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(root)}
    pin = lambda: os.sched_setaffinity(0, cores)  # noqa: E731
    done = subprocess.run([python, *arguments], capture_output=True, text=True, env=environment, preexec_fn=pin)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}


def compare(options: argparse.Namespace) -> None:
    """All systems in turn, and the table."""
    here = Path(__file__)
    peers, directory = str(here.with_name("generation_peers.py")), str(options.directory)
    if not (options.directory / "ctranslate2").exists():
        run(options.peer_python, [peers, "prepare", directory], options.threads)
    bandwidth = run(sys.executable, [str(here), directory, "--bandwidth"], options.threads)["bandwidth"]
    bound = STEP_BYTES / bandwidth
    print(
        f"{options.threads} threads, float32, {SOURCE} source and {NEW} new tokens, {options.rounds} rounds of {options.calls}"
    )
    print(
        f"read bandwidth {bandwidth / 1e9:.1f} GB/s: {STEP_BYTES / 1e6:.0f} MB of weights take {1000 * bound:.2f} ms a step\n"
    )
    columns = ["batch", "beams", *(f"{s}: tokens/s (range), first s, MiB" for s in SYSTEMS)]
    columns += [*(f"zoo / {s}" for s in SYSTEMS[1:]), "of the bound", *(f"same as {s}" for s in SYSTEMS[1:])]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for beams in options.beams:
        for batch in options.batches:
            results: dict[str, list[dict]] = {system: [] for system in SYSTEMS}
            for _ in range(options.rounds):
                for system in SYSTEMS:
                    numbers = [str(n) for n in (batch, beams, options.threads, options.calls)]
                    if system == "zoo":
                        found = run(sys.executable, [str(here), directory, "--cell", *numbers], options.threads)
                    else:
                        found = run(options.peer_python, [peers, system, directory, *numbers], options.threads)
                    results[system].append(found)
            print(row(batch, beams, results, bound), flush=True)


def row(batch: int, beams: int, results: dict[str, list[dict]], bound: float) -> str:
    """One line of the table."""
    speeds = {s: [batch * NEW / x for found in results[s] for x in found["later"]] for s in SYSTEMS}
    middle = {s: statistics.median(speeds[s]) for s in SYSTEMS}
    cells = [
        f"{middle[s]:,.0f} ({min(speeds[s]):,.0f} to {max(speeds[s]):,.0f}), "
        f"{statistics.median(found['first'] for found in results[s]):.1f}, {max(found['mib'] for found in results[s]):,.0f}"
        for s in SYSTEMS
    ]
    ratios = [f"{middle['zoo'] / middle[s]:.2f}" for s in SYSTEMS[1:]]
    tokens = {s: np.array(results[s][0]["tokens"]) for s in SYSTEMS}
    same = [f"{np.mean(np.all(tokens['zoo'] == tokens[s], axis=1)):.0%}" for s in SYSTEMS[1:]]
    of_bound = bound * middle["zoo"] / batch
    return f"| {batch} | {beams} | " + " | ".join([*cells, *ratios, f"{of_bound:.0%}", *same]) + " |"


def main() -> None:
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--peer-python", default=sys.executable, help="has torch, transformers and ctranslate2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=3, help="measured calls of each process, after the first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32])
    parser.add_argument("--beams", type=numbers, default=[1, 4])
    parser.add_argument("--cell", type=int, nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--bandwidth", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bandwidth:
        print(json.dumps({"bandwidth": read_bandwidth()}))
    elif options.cell:
        batch, beams, _, calls = options.cell
        print(json.dumps(measure_zoo(options.directory, batch, beams, calls)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
