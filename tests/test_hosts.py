"""Several processes on loopback, each with two devices, through the real command: one run, whatever it runs on."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from train import hosts
from train.experiment import Hosts
from zoo.core import UserError

pytestmark = pytest.mark.xdist_group("hosts")  # one worker: each test keeps the whole machine busy

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
PATIENCE = 400  # seconds for a command on a machine that is busy with others; none of them needs a tenth of it
CONFIG = """
from train.data import Batching, Files
from train.experiment import Experiment, Tokenizers, Training
from train.optim import Optimizer
from zoo.decoding import Decoding
from zoo.rnn import ElmanConfig

experiment = Experiment(
    model=ElmanConfig(embed_dim=8, hidden_dim=8, dropout=0.0),
    data=Files(train="{train}", validation="{few}", test="{few}"),
    tokenizers=Tokenizers("characters", "characters"),
    batching=Batching(tokens=128, max_source_len=8, max_target_len=8, buckets=1),
    optimizer=Optimizer(learning_rate=0.02, schedule="constant", warmup_steps=0),
    training=Training(log_every=1, eval_every=10**6, keep_last=9, trace=True, tensorboard=False),
    decoding=Decoding(max_len=8),
)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """Words of very different lengths and their reverse, and an experiment on them."""
    directory, rng = tmp_path_factory.mktemp("hosts"), np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcde"), rng.integers(1, 8))) for _ in range(90)]
    files = {"train": words, "few": ["abc", "edcba", "a", "cc"]}
    for name, rows in files.items():
        (directory / f"{name}.tsv").write_text("".join(f"{word}\t{word[::-1]}\n" for word in rows))
    path = directory / "config.py"
    path.write_text(CONFIG.format(**{name: directory / f"{name}.tsv" for name in files}))
    return path


class Command:
    """The same command on some hosts, the last of which may get options of its own."""

    def __init__(
        self,
        config: Path,
        workdir: Path,
        *options: str,
        count: int = 1,
        devices: int = 2,
        last: tuple = (),
        last_cwd: Path | None = None,
    ):
        self.workdir, self.processes = workdir, []
        self.said = [workdir.parent / f"said_by_{index}" for index in range(count)]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_"))},
            "PYTHONPATH": str(ROOT),
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # a quarter less to compile
            "JAX_COMPILATION_CACHE_DIR": str(config.parent / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        for index in range(count):
            given = f"--hosts.kind given --hosts.coordinator {address} --hosts.count {count} --hosts.index {index}".split()
            arguments = [str(config), "--workdir", str(workdir), *options, *(given if count > 1 else [])]
            arguments += last if index == count - 1 else ()
            cwd = last_cwd if last_cwd and index == count - 1 else config.parent
            with self.said[index].open("w") as out:  # a pipe that nobody reads yet would stop the host that fills it
                started = [sys.executable, "-m", "train", *arguments]
                self.processes.append(subprocess.Popen(started, cwd=cwd, env=environment, stdout=out, stderr=subprocess.STDOUT))

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def end(self) -> tuple[list[int], list[str]]:
        """The exit codes and what was said, by host."""
        codes = [process.wait(PATIENCE) for process in self.processes]
        return codes, [path.read_text() for path in self.said]

    def wait_for_step(self, step: int) -> None:
        """Until metrics.jsonl has a line of it."""
        path, limit = self.workdir / "metrics.jsonl", time.monotonic() + PATIENCE
        while not (path.exists() and any(line["step"] >= step for line in lines(path))):
            assert all(process.poll() is None for process in self.processes), self.end()
            assert time.monotonic() < limit, "no step"
            time.sleep(0.05)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def done(config: Path, workdir: Path, steps: int, *options: str, **how) -> list[str]:
    """Run to a step, successfully; what was said, by host."""
    with Command(config, workdir, "--training.steps", str(steps), *options, **how) as command:
        codes, said = command.end()
    assert not any(codes), said
    return said


def test_the_same_run_on_any_number_of_hosts(config, tmp_path):
    """One run that moves from leg to leg, against one that stays in one process on eight devices.

    Two and four hosts, pmap and mesh; resumed on more devices, on fewer, on one, and from pmap to mesh. In the mesh of four
    hosts each matrix product is shared by two of them, which read the same rows.
    """
    stays, moves = tmp_path / "stays", tmp_path / "moves"
    mesh = ("--parallel.kind", "mesh", "--parallel.fsdp", "2", "--parallel.model")
    done(config, stays, 10, devices=8)
    done(config, moves, 2, count=2)
    done(config, moves, 4, count=4)
    done(config, moves, 6, *mesh, "2", count=2)
    said = done(config, moves, 8, *mesh, "4", count=4)
    done(config, moves, 10, devices=1)

    expected, found = lines(stays / "trace.jsonl"), lines(moves / "trace.jsonl")
    assert [line["step"] for line in found] == [*range(1, 11)]
    assert [line["example_ids"] for line in found] == [line["example_ids"] for line in expected]
    assert len({example for line in found for example in line["example_ids"]}) == 90, "not every example was seen"
    losses = [[float.fromhex(line["loss"]) for line in run] for run in (found, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    scores = [
        {name: x for name, x in json.loads((run / "result.json").read_text()).items() if "test/" in name}
        for run in (stays, moves)
    ]
    assert scores[0] == scores[1]
    assert "testing checkpoint" in said[0], "the first host says what it does"
    assert all("testing checkpoint" not in other for other in said[1:]), "and the others do not"


def test_hosts_with_different_experiments_stop_together(config, tmp_path):
    with Command(config, tmp_path / "run", count=2, last=("--model.hidden-dim", "9")) as command:
        codes, said = command.end()
    assert codes == [2, 2], said
    for text in said:
        assert "error: the hosts differ in model.hidden_dim, 8 on host 0, 9 on host 1" in text
        assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (None, "error: host 1 of 2: .*elsewhere"),
        ("abc\tcba\nxyz\tzyx\n" * 9, "error: the hosts differ in the tokenizers"),
    ],
    ids=["missing", "another"],
)
def test_hosts_with_different_files_stop_together(config, tmp_path, there, message):
    """The same command where a relative path leads elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    if there is not None:
        (tmp_path / "elsewhere" / "train.tsv").write_text(there)
    with Command(config, tmp_path / "run", "--data.train", "train.tsv", count=2, last_cwd=tmp_path / "elsewhere") as command:
        codes, said = command.end()
    assert codes == [2, 2], said
    assert all(re.search(message, text) and "Traceback" not in text for text in said), said


def test_a_lost_host_and_a_signal_to_one(config, tmp_path):
    """A host that is killed ends the other; the same command continues; a signal to one host stops both after one step."""
    workdir = tmp_path / "run"
    options = ("--training.steps", "1000000", "--training.save-every", "5")
    with Command(config, workdir, *options, "--hosts.timeout", "10", count=2) as command:
        command.wait_for_step(12)
        command.processes[1].kill()
        start = time.monotonic()
        code = command.processes[0].wait(60)
        assert code not in (0, 42), f"exit code {code} after {time.monotonic() - start:.0f} s"
    with Command(config, workdir, *options, count=2) as command:
        command.wait_for_step(lines(workdir / "metrics.jsonl")[-1]["step"] + 5)
        command.processes[1].send_signal(signal.SIGTERM)
        codes, said = command.end()
    assert codes == [42, 42], said
    last = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert lines(workdir / "trace.jsonl")[-1]["step"] == last
    assert all(f"after step {last}, which is saved" in text for text in said)
    assert [line["step"] for line in lines(workdir / "trace.jsonl")] == [*range(1, last + 1)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Hosts("given", count=2, index=2), "hosts.index is 2: it must be 0 to hosts.count - 1, which is 1"),
        (Hosts("given", "10.0.0.1"), "write host:port"),
        (Hosts("given", "256.0.0.1:1"), "cannot listen"),
        (Hosts("auto"), "did not find each other"),
        (Hosts("auto", timeout=0), "hosts.timeout is 0"),
    ],
)
def test_hosts_that_cannot_be_joined(wrong, message):
    with pytest.raises(UserError, match=message):
        hosts.connect(wrong)
    assert not jax.distributed.is_initialized()


def test_alone_everything_agrees():
    hosts.connect(Hosts())
    hosts.agree({"a": 1})
    assert hosts.gather("é") == ["é"]
    with pytest.raises(UserError, match=r"^mine$"), hosts.together():
        raise UserError("mine")
    with pytest.raises(ZeroDivisionError), hosts.together():
        _ = 1 / 0
    assert hosts.digest({"a": 1, "b": 2}) == hosts.digest({"b": 2, "a": 1}) != hosts.digest({"a": 1, "b": 3})


def test_what_a_run_starts_from_is_read_before_hosts_meet():
    """Reading its settings asks for no devices: JAX would not let the hosts find each other afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    code = (
        "import sys, jax\nfrom zoo.checkpoint.directory import load_settings\n"
        "for directory in sys.argv[2:]:\n    load_settings(directory)\n"
        "jax.distributed.initialize(f'127.0.0.1:{sys.argv[1]}', 1, 0)\n"
    )
    directories = [str(GOLDEN / name) for name in ("bart", "bert", "gpt2", "marian", "t5", "whisper")]
    found = subprocess.run([sys.executable, "-c", code, str(port), *directories], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
