"""How fast each config's model trains here: compile time, words (rows) a second and tokens a second of one shape.

    JAX_NUM_CPU_DEVICES=1 python tests/benchmarks/train_step.py [CONFIG.py ...]

Random data of one shape without padding, so that nothing but the step is measured; the best and the median of several steps.
"""

from __future__ import annotations

import dataclasses
import runpy
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from train import optim, parallel
from train.data import Batch
from train.step import init_state, make_train_step
from zoo.core import Tokens
from zoo.variants import abstract_params

ROWS, SOURCE, TARGET, STEPS, VOCAB = 256, 12, 12, 8, 43
CONFIGS = Path(__file__).parent.parent.parent / "configs"


def measure(path: Path) -> str:
    experiment = runpy.run_path(str(path))["experiment"]
    config = dataclasses.replace(experiment.model, source_vocab_size=VOCAB, target_vocab_size=VOCAB)
    model, devices = config.build(), parallel.make(experiment.parallel, ())
    tx = optim.make(experiment.optimizer, abstract_params(config), 1000)
    state = devices.init(partial(init_state, model, tx, config.example(1), jax.random.key(0)))
    step = devices.compile_train(make_train_step(model, tx, experiment.training.label_smoothing))
    source, target = (Tokens(x.ids, np.ones_like(x.mask)) for x in config.example(ROWS, SOURCE, TARGET))
    batch = devices.put(Batch(source, target, np.arange(ROWS)))
    seconds = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        state, _ = step(state, batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    first, *rest = seconds
    best, middle = min(rest), statistics.median(rest)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    tokens = ROWS * (SOURCE + TARGET)
    return (
        f"| {path.stem} | {size:,} | {first - best:.1f} | {1000 * best:.0f} / {1000 * middle:.0f} "
        f"| {ROWS / best:,.0f} | {tokens / best:,.0f} |"
    )


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:]] or sorted(CONFIGS.glob("*_g2p.py"))
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, batch {ROWS} x {SOURCE} -> {TARGET}, float32")
    print("| config | parameters | compile s | step ms, best / median | rows/s | tokens/s |\n|---|---|---|---|---|---|")
    for path in paths:
        print(measure(path), flush=True)


if __name__ == "__main__":
    main()
