"""How fast pretrained models load and Whisper decodes here, beside transformers (torch) and, for Whisper, CTranslate2.

Random weights of published sizes.

    python tests/benchmarks/pretrained.py DIR --peer-python PYTHON [--rounds 3] [--threads 2]

DIR keeps the random models (made on the first run). PYTHON has torch, transformers and ctranslate2; it may be that of another
environment. Each number comes from a process of its own, the systems in turn, round after round, on an idle machine, and in
float32.

  load     OPUS-MT's size from safetensors: seconds until all parameters are there (imports are not counted), and how much the
           greatest resident memory of the process grew meanwhile, beside the size of the file
  whisper  Whisper-tiny's size: one window of 30 s, from its frames to 64 tokens, greedy; tokens a second and the first call
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from fresh import run, timed

NEW = 64  # tokens
TASKS = ("load", "whisper")


def memory() -> float:
    """The greatest resident memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_load(directory: str) -> dict:
    import jax

    import zoo

    before, start = memory(), time.perf_counter()
    jax.block_until_ready(zoo.load(directory).params)
    return {"seconds": time.perf_counter() - start, "mib": memory() - before}


def measure_whisper(directory: str, calls: int) -> dict:
    import zoo
    from zoo.core import Frames
    from zoo.generate import Greedy, Rules, generate

    predictor = zoo.load(directory)
    config = predictor.model.config
    values_BNM = np.random.default_rng(0).standard_normal((1, 2 * config.max_source_len, config.mels)).astype(np.float32)
    source, rules = Frames(values_BNM, np.ones(values_BNM.shape[:2], bool)), Rules(min_len=NEW + 1)

    def once():
        ids_BT = generate(predictor.model, predictor.params, source, max_len=NEW, search=Greedy(), rules=rules).ids
        assert ids_BT.shape == (1, NEW)

    return timed(once, calls)


def compare(options: argparse.Namespace) -> None:
    """The systems in turn, a table a task."""
    here, peers = Path(__file__), Path(__file__).with_name("pretrained_peers.py")
    if not (options.directory / "whisper" / "config.json").exists():
        run(options.peer_python, peers, ["--cell", json.dumps(["prepare", str(options.directory), 0, options.threads])], 2)
    for task in options.tasks:
        systems = ("zoo", "transformers", "ctranslate2")[: 2 if task == "load" else 3]
        results: dict[str, list[dict]] = {system: [] for system in systems}
        directory = options.directory / {"load": "marian", "whisper": "whisper"}[task]
        for _ in range(options.rounds):
            for system, found in results.items():
                python, script = (sys.executable, here) if system == "zoo" else (options.peer_python, peers)
                cell = [system if system == "ctranslate2" else task, str(directory), options.calls, options.threads]
                found.append(run(python, script, ["--cell", json.dumps(cell)], options.threads))
        print(f"\n{task}, {options.rounds} rounds, {options.threads} threads")
        size = (directory / "model.safetensors").stat().st_size / 2**20
        for system, found in results.items():
            if task == "load":
                seconds = [one["seconds"] for one in found]
                grew = max(one["mib"] for one in found)
                print(f"{system}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
                      f"{grew:,.0f} MiB more for a file of {size:,.0f}")  # fmt: skip
            else:
                speeds = [NEW / x for one in found for x in one["later"]]
                first = statistics.median(one["first"] for one in found)
                print(f"{system}: {statistics.median(speeds):,.0f} tokens/s ({min(speeds):,.0f} to {max(speeds):,.0f}), "
                      f"first call {first:.1f} s, {max(one['mib'] for one in found):,.0f} MiB")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", nargs="?")
    parser.add_argument("--peer-python", default=sys.executable, help="has torch, transformers and ctranslate2")
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=3, help="measured calls of each process, after two")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        task, directory, calls, _ = options.cell
        print(json.dumps(measure_load(directory) if task == "load" else measure_whisper(directory, calls)))
    elif options.directory is None:
        parser.error("DIR is missing")
    else:
        compare(options)


if __name__ == "__main__":
    main()
