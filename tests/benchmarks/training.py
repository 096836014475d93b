"""How fast models train here beside torch (eager, and torch.compile) and beside Flax's own building blocks.

    python tests/benchmarks/training.py --peer-python PYTHON [--tasks transformer,lstm] [--rounds 3] [--threads 2]

PYTHON has torch and transformers; it may be that of another environment. Each number comes from a process of its own, the
systems in turn, round after round, on an idle machine: a step of Adam in float32 with dropout on random tokens without padding.

  transformer  Transformer-base, 37,000 shared words, 16 x 64 source and target tokens
  lstm         an encoder and a decoder of 2 layers of 512 cells with Luong's attention, 10,000 words a side, 32 x 40
  bert         fine-tuning BERT-base for two classes, 8 x 128
  t5           T5-small, 8 x 128 source and 8 x 32 target tokens

A table has the seconds of a step (the median of all steps of all rounds, and their range), source and target tokens a second,
the seconds of the first step, compilation included, and the greatest resident memory of the process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from functools import partial
from pathlib import Path

import numpy as np
from fresh import run, timed

TASKS = {  # rows, source length, target length, vocabulary
    "transformer": (16, 64, 64, 37_000),
    "lstm": (32, 40, 40, 10_000),
    "bert": (8, 128, 1, 30_522),
    "t5": (8, 128, 32, 32_128),
}
SYSTEMS = ("zoo", "torch", "torch.compile", "flax")
FLAX = ("transformer", "lstm")  # what Flax has blocks for


def config_of(task: str):
    """The zoo's configuration of a task."""
    *_, vocab = TASKS[task]
    if task == "transformer":
        from zoo.transformer import PRESETS

        return dataclasses.replace(PRESETS["base"], source_vocab_size=vocab, target_vocab_size=vocab)
    if task == "lstm":
        from zoo.rnn_attention import LuongConfig

        sizes = {"embed_dim": 512, "hidden_dim": 512, "num_layers": 2, "input_feeding": False, "dropout": 0.1}
        return LuongConfig(vocab, vocab, score="general", **sizes)
    if task == "bert":
        from zoo.bert import PRESETS

        return dataclasses.replace(PRESETS["base-uncased"], head="classification", target_vocab_size=2)
    from zoo.t5 import PRESETS

    return PRESETS["t5-small"]


def tokens(rng: np.random.Generator, rows: int, length: int, vocab: int):
    from zoo.core import Tokens

    return Tokens(rng.integers(4, vocab, (rows, length)).astype(np.int32), np.ones((rows, length), bool))


def measure_zoo(task: str, steps: int) -> dict:
    """The trainer's own step, on one device."""
    import jax

    from train import optim, parallel
    from train.data import Batch
    from train.step import init_state, make_train_step
    from zoo.variants import abstract_params

    rows, S, T, _ = TASKS[task]
    config, rng = config_of(task), np.random.default_rng(0)
    model, devices = config.build().clone(right_padded=True), parallel.make(parallel.Parallel())
    optimizer = optim.Optimizer(learning_rate=1e-4, clip=0.0)
    tx = optim.make(optimizer, abstract_params(config), 1000)
    state = devices.init(partial(init_state, model, tx, config.example(1), jax.random.key(0), optimizer))
    step = devices.compile_train(make_train_step(model, tx, 0.0, optimizer))
    source = tokens(rng, rows, S, config.source_vocab_size)
    target = tokens(rng, rows, T, max(config.target_vocab_size, 5))
    target = target._replace(ids=target.ids % config.target_vocab_size)
    batch = devices.put(Batch(source, target, np.arange(rows)))

    def once():
        nonlocal state
        state, _ = step(state, batch)
        jax.block_until_ready(state)

    return timed(once, steps) | {"parameters": sum(x.size for x in jax.tree.leaves(state.params))}


def compare(options: argparse.Namespace) -> None:
    """All systems in turn, a table a task."""
    here = Path(__file__)
    scripts = {"zoo": here, "flax": here.with_name("training_flax.py")}
    for task in options.tasks:
        rows, S, T, _ = TASKS[task]
        results: dict[str, list[dict]] = {s: [] for s in options.systems if s != "flax" or task in FLAX}
        for _ in range(options.rounds):
            for system in results:
                python = sys.executable if system in scripts else options.peer_python
                script = scripts.get(system, here.with_name("training_peers.py"))
                arguments = ["--cell", json.dumps([system, task, TASKS[task], options.steps, options.threads])]
                results[system].append(run(python, script, arguments, options.threads))
        print(f"\n{task}: {rows} x {S} -> {T}, {options.rounds} rounds of {options.steps} steps, {options.threads} threads\n")
        print("| system | parameters | step, s | tokens/s | first step, s | peak MiB | zoo / this |\n" + "|---" * 7 + "|")
        middle = {s: statistics.median(x for found in results[s] for x in found["later"]) for s in results}
        for system, found in results.items():
            later = [x for one in found for x in one["later"]]
            print(
                f"| {system} | {found[0]['parameters']:,} | {middle[system]:.3f} ({min(later):.3f} to {max(later):.3f}) "
                f"| {rows * (S + T) / middle[system]:,.0f} | {statistics.median(one['first'] for one in found):.1f} "
                f"| {max(one['mib'] for one in found):,.0f} | {middle[system] / middle['zoo']:.2f} |",
                flush=True,
            )


def main() -> None:
    chosen = lambda text: text.split(",")  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="has torch and transformers")
    parser.add_argument("--tasks", type=chosen, default=list(TASKS))
    parser.add_argument("--systems", type=chosen, default=list(SYSTEMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each process, after two")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        _, task, _, steps, _ = options.cell
        print(json.dumps(measure_zoo(task, steps)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
