"""``python -m tests.faults --kills 50 --seed 0``: a table of kills, and exit code 1 if any run ended in another way.

Each run is killed up to five times, then left to end; what it leaves is compared with an uninterrupted run's. A command that
is done before its kill does not count.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.faults.harness import OPERATIONS, Command, differences, evidence, random_kill, resumed_from

KINDS = ("-9", "-15", "early", "save", *OPERATIONS)
KILLS_A_RUN = 5


def main() -> int:
    """Run, print, compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new directory for all that is written, kept afterwards")
    arguments = parser.parse_args()
    directory = arguments.keep or Path(tempfile.mkdtemp())
    try:
        return kill_many(directory, arguments.kills, np.random.default_rng(arguments.seed))
    finally:
        if not arguments.keep:
            shutil.rmtree(directory)


def kill_many(directory: Path, kills: int, rng: np.random.Generator) -> int:
    """The exit code."""
    command = Command(directory)
    command.run(directory / "whole")
    expected = evidence(directory / "whole")
    start, seconds = command.times(directory / "again")  # with programs that are compiled already
    wrong = differences(expected, evidence(directory / "again"))
    print(f"a run alone takes {start:.1f} s to its first step and {seconds:.1f} s more; two are {verdict(wrong)}\n")
    print("run  kill      where       exit code  resumed from  the run ended")
    plan = [KINDS[number % len(KINDS)] for number in range(kills)]
    rng.shuffle(plan)
    number = 0
    while plan:
        workdir, landed, faults = directory / f"run{number}", [], []
        while plan and len(landed) < KILLS_A_RUN:
            kill = random_kill(plan[-1], rng, start, seconds)
            code, said = command.run_killed(workdir, kill)
            if landed:
                landed[-1][-1] = resumed_from(said)
            if code == 0:  # it was quicker
                break
            plan.pop()
            landed.append([kill, code, "-"])
            if code not in kill.codes:
                faults.append(f"{kill}: exit code {code}: {said[-3000:]}")
        else:
            landed[-1][-1] = resumed_from(command.run(workdir))
        faults += differences(expected, evidence(workdir))
        for kill, code, resumed in landed:
            print(f"{number:3}  {kill}  {code:9}  {resumed:>12}  {verdict(faults)}", flush=True)
        wrong += faults
        number += 1
        if not faults:
            shutil.rmtree(workdir)
    print(f"\n{kills} kills in {number} runs: {len(wrong)} faults")
    return 1 if wrong else 0


def verdict(faults: list[str]) -> str:
    """One word, or what is wrong."""
    return "; ".join(faults) or "equal"


if __name__ == "__main__":
    sys.exit(main())
