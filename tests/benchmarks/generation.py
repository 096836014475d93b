"""How fast the zoo generates, beside transformers (torch) and CTranslate2 on the same random weights of Marian's base size.

    python tests/benchmarks/generation.py DIR --peer-python PYTHON [--rounds 3] [--threads 2] [--batches 1,8,32] [--beams 1,4]
    python tests/benchmarks/generation.py DIR --peer-python PYTHON --gpu [--dry-run]

DIR keeps the random model (made on the first run). PYTHON has torch, transformers and ctranslate2; it may be that of another
environment. Each number comes from a process of its own, the systems in turn, round after round, on an idle machine:

  tokens/s     new tokens of all sentences over the seconds of a call, the median of all calls of all rounds, and their range
  first        seconds of the first call, compilation included (loading weights is not)
  MiB          the greatest resident memory of the process; with --gpu the most that was allocated on the device, 0 if untold
  of the bound the speed beside that of a decoder that only reads its weights and the filled part of its caches, once a step, at
               the bandwidth of changing a large array in place, measured in the same run: bytes read and written over seconds

A source of 32 tokens, 64 new tokens that no end token cuts short, greedy and beam search under transformers' length penalty 1.

On the CPU all compute in float32. With --gpu all compute in bfloat16 (CTranslate2 in float16 where it has no bfloat16), and
transformers has its static cache and torch.compile. --dry-run takes that path on the CPU, on a tiny model: its numbers mean
nothing, but the path has been run.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import fresh
import numpy as np

SYSTEMS = ("zoo", "transformers", "ctranslate2")


class Size(NamedTuple):
    """The shape of the model and of the task; ``source`` and ``new`` count tokens."""

    D: int
    F: int
    layers: int
    heads: int
    vocab: int
    source: int
    new: int

    def step_bytes(self, batch: int, beams: int, width: int) -> int:
        """What a step must read, in numbers of ``width`` bytes, on average: weights, caches and projected sources."""
        # Self-attention's four matrices, two of cross-attention's, the feed-forward pair, and the output's.
        weights = self.layers * (6 * self.D * self.D + 2 * self.D * self.F) + self.vocab * self.D
        positions = batch * (beams * (self.new + 1) / 2 + self.source)
        return int(width * (weights + self.layers * 2 * self.D * positions))


BASE, TINY = Size(512, 2048, 6, 8, 59_514, 32, 64), Size(32, 64, 2, 4, 500, 8, 8)


class Cell(NamedTuple):
    """One measurement, as its process gets it: ``gpu`` is the way of computing, and ``dry_run`` takes that way on the CPU."""

    directory: str
    batch: int
    beams: int
    threads: int
    calls: int
    gpu: bool
    dry_run: bool

    @property
    def size(self) -> Size:
        return TINY if self.dry_run else BASE

    @property
    def width(self) -> int:
        """Bytes of a number."""
        return 2 if self.gpu else 4

    @property
    def on_gpu(self) -> bool:
        return self.gpu and not self.dry_run

    def sources(self) -> np.ndarray:
        """(batch, source) random token ids, the same for every system."""
        return np.random.default_rng(0).integers(4, self.size.vocab - 2, (self.batch, self.size.source))


def torch_names(tensors: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """Marian's tensors in transformers' names as the names of ``torch.nn.Transformer``, which ``zoo.transformer`` reads."""
    found = {"embedding.weight": tensors["model.shared.weight"]}
    for side, ours in (("encoder", "source_positions"), ("decoder", "target_positions")):
        found[f"{ours}.weight"] = tensors[f"model.{side}.embed_positions.weight"]
        norms = ["self_attn_layer_norm", "final_layer_norm"]
        norms[1:1] = ["encoder_attn_layer_norm"] if side == "decoder" else []
        for i in range(layers):
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


def load(cell: Cell):
    """(model, params) of the zoo with the weights that transformers saved."""
    import jax
    from safetensors.numpy import load_file

    from zoo.checkpoint.rules import from_reference
    from zoo.transformer import TransformerConfig
    from zoo.variants import abstract_params

    size = cell.size
    shape = {"d_model": size.D, "d_ff": size.F, "num_heads": size.heads, "num_layers": size.layers}
    model = TransformerConfig(size.vocab, size.vocab, **shape, dropout=0.0, positions="learned", max_len=512).build()
    tensors = load_file(Path(cell.directory) / "transformers" / "model.safetensors")
    positions = [f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")]
    tensors |= {name: marian_positions(size.D) for name in positions if name not in tensors}
    params = from_reference(torch_names(tensors, size.layers), model.RULES, abstract_params(model.config))
    dtype = "bfloat16" if cell.gpu else "float32"
    return model, jax.tree.map(lambda x: jax.device_put(x).astype(dtype), params)


def marian_positions(D: int, rows: int = 512) -> np.ndarray:
    """Marian's sinusoids as transformers computes them: sines in the first half, cosines in the second."""
    angle = np.arange(rows)[:, None] / 10_000 ** (2 * np.arange(D // 2) / D)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def measure_zoo(cell: Cell) -> dict:
    """What ``generation_peers.py`` measures of the others."""
    import jax

    from zoo.core import Tokens
    from zoo.generate import Beam, Greedy, Rules, generate, penalty

    check_device(cell)
    model, params = load(cell)
    last, new = cell.size.vocab - 1, cell.size.new
    source = Tokens(cell.sources().astype(np.int32), np.ones((cell.batch, cell.size.source), bool))
    rules = Rules(start_id=last, pad_id=last, end_id=0, min_len=new + 1)
    search = Beam(cell.beams, penalty.huggingface(1.0)) if cell.beams > 1 else Greedy()
    found = timed(lambda: generate(model, params, source, max_len=new, search=search, rules=rules).ids, cell)
    if cell.on_gpu:
        found["mib"] = jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20
    return found


def timed(call: Callable[[], np.ndarray], cell: Cell) -> dict:
    """Seconds of the first call and of each later one, the greatest resident memory, and the tokens (batch, new)."""
    seconds = []
    for _ in range(cell.calls + 1):
        start = time.perf_counter()
        tokens = call()
        seconds.append(time.perf_counter() - start)
    assert tokens.shape == (cell.batch, cell.size.new), tokens.shape
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first": seconds[0], "later": seconds[1:], "mib": memory, "tokens": tokens.tolist()}


def check_device(cell: Cell) -> None:
    """Refuse to measure a CPU as a GPU."""
    import jax

    if cell.on_gpu and jax.default_backend() != "gpu":
        raise SystemExit(f"--gpu: jax sees {jax.devices()}; install jax[cuda12], or try the path with --dry-run")


def memory_bandwidth(cell: Cell) -> float:
    """Bytes a second, read and written, of negating a large array in place, the best of ten.

    Not of a copy, whose fresh pages a CPU's system clears first.
    """
    import jax
    import jax.numpy as jnp

    check_device(cell)
    x, negate = jnp.ones(((2048 if cell.on_gpu else 512) * 250_000,)), jax.jit(jnp.negative, donate_argnums=0)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        x = jax.block_until_ready(negate(x))
        seconds.append(time.perf_counter() - start)
    return 2 * x.nbytes / min(seconds)


def run(python: str, script: Path, task: str, cell: Cell) -> dict:
    """The JSON that a process of its own prints."""
    arguments = [cell.directory, "--task", task, "--cell", json.dumps(cell)]
    return fresh.run(python, script, arguments, cell.threads, cell.on_gpu)


def compare(options: argparse.Namespace) -> None:
    """All systems in turn, and the table."""
    here, peers = Path(__file__), Path(__file__).with_name("generation_peers.py")
    cell = Cell(str(options.directory), 1, 1, options.threads, options.calls, options.gpu, options.dry_run)
    size, systems = cell.size, options.systems
    bandwidth = run(sys.executable, here, "bandwidth", cell)["bandwidth"]
    if not (options.directory / "ctranslate2").exists():
        run(options.peer_python, peers, "prepare", cell)
    how = "bfloat16 on a GPU" if options.gpu else f"float32 on {options.threads} threads"
    how += ", DRY RUN on the CPU: the numbers mean nothing" if options.dry_run else ""
    print(f"{how}, {size.source} source and {size.new} new tokens, {options.rounds} rounds of {options.calls}")
    weights = size.step_bytes(0, 0, cell.width)
    took = f"{weights / 1e6:.0f} MB of weights take {1000 * weights / bandwidth:.2f} ms"
    print(f"memory moves {bandwidth / 1e9:.1f} GB/s: {took}\n")
    columns = ["batch", "beams", *(f"{s}: tokens/s (range), first s, MiB" for s in systems)]
    columns += [*(f"zoo / {s}" for s in systems[1:]), "of the bound", *(f"same as {s}" for s in systems[1:])]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for beams in options.beams:
        for batch in options.batches:
            cell = cell._replace(batch=batch, beams=beams)
            results: dict[str, list[dict]] = {system: [] for system in systems}
            for _ in range(options.rounds):
                for system in systems:
                    python, script = (sys.executable, here) if system == "zoo" else (options.peer_python, peers)
                    results[system].append(run(python, script, system, cell))
            print(row(cell, results, bandwidth), flush=True)


def row(cell: Cell, results: dict[str, list[dict]], bandwidth: float) -> str:
    """One line of the table."""
    size, batch, systems = cell.size, cell.batch, list(results)
    speeds = {s: [batch * size.new / x for found in results[s] for x in found["later"]] for s in systems}
    middle = {s: statistics.median(speeds[s]) for s in systems}
    cells = [
        f"{middle[s]:,.0f} ({min(speeds[s]):,.0f} to {max(speeds[s]):,.0f}), "
        f"{statistics.median(found['first'] for found in results[s]):.1f}, {max(found['mib'] for found in results[s]):,.0f}"
        for s in systems
    ]
    ratios = [f"{middle['zoo'] / middle[s]:.2f}" for s in systems[1:]]
    tokens = {s: np.array(results[s][0]["tokens"]) for s in systems}
    same = [f"{np.mean(np.all(tokens['zoo'] == tokens[s], axis=1)):.0%}" for s in systems[1:]]
    of_bound = size.step_bytes(batch, cell.beams, cell.width) / bandwidth * middle["zoo"] / batch
    return f"| {batch} | {cell.beams} | " + " | ".join([*cells, *ratios, f"{of_bound:.0%}", *same]) + " |"


def named(text: str) -> list[str]:
    """The systems that ``--systems`` names; the zoo is always the first."""
    if unknown := set(names := text.split(",")) - set(SYSTEMS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose among {', '.join(SYSTEMS)}")
    return [system for system in SYSTEMS if system == "zoo" or system in names]


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
    parser.add_argument("--systems", type=named, default=list(SYSTEMS), help="to leave out what a machine cannot run")
    parser.add_argument("--gpu", action="store_true", help="compute in bfloat16 on a GPU")
    parser.add_argument("--dry-run", action="store_true", help="with --gpu: on the CPU, on a tiny model; wants its own DIR")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--cell", type=lambda text: Cell(*json.loads(text)), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dry_run and not options.gpu:
        parser.error("--dry-run is for --gpu: the CPU's own path can run anyway")
    if options.task == "bandwidth":
        print(json.dumps({"bandwidth": memory_bandwidth(options.cell)}))
    elif options.task == "zoo":
        print(json.dumps(measure_zoo(options.cell)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
