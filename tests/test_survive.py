"""What happens to a run: signals, a stuck thread, a full disk, numbers that are none. Kills of real commands are at the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults.harness import ROOT, Command, Kill, differences, evidence, resumed_from

from train import journal, loop, prepare, report, saver, survive
from train.__main__ import main
from train.checkpoint import Checkpoints, Saved, SaveFailed
from train.data import Batch, Files, check_ids, prefetch, prefetch_to_device
from train.data.pipeline import TrainBatches
from train.experiment import Experiment, Training
from train.metrics import Metric
from train.parallel import Pmap
from train.step import Skipped, State, make_train_step
from train.survive import Programs, Signals, Stopped, Watchdog
from zoo import transformer
from zoo.core import Tokens, UserError

pytestmark = pytest.mark.xdist_group("survive")

STEPS, STOP = 14, 9  # of a run in this process; an odd step stands in the midst of an update
SHORT = (
    "--training.steps",
    str(STEPS),
    "--training.save-every",
    "4",
    "--training.eval-every",
    "100",
    "--parallel.devices",
    "1",
)


class Here:
    """The command in this process: every run uses one compiled step, and evaluation and test are left out."""

    def __init__(self, command: Command):
        self.command = command
        self.shapes: dict = {}  # that a step was traced for
        self.compiled: dict = {}
        self.compile = Pmap.compile_train

    def __call__(
        self,
        monkeypatch,
        workdir,
        *more: str,
        make=prepare.make_train_step,
        evaluate=lambda run, state: ({"validation/nll": 1.0}, 1.0),
    ) -> int:
        """The exit code."""

        def counted(*arguments):
            step = make(*arguments)

            def train_step(state, batch, axis=None):
                self.shapes.setdefault(make, []).append((*batch.source.ids.shape, batch.target.ids.shape[1]))
                return step(state, batch, axis)

            return chex.assert_max_traces(train_step, n=2)  # as many as there are buckets

        def once(strategy, step):
            if make not in self.compiled:
                self.compiled[make] = self.compile(strategy, step)
            return self.compiled[make]

        monkeypatch.setattr(prepare, "make_train_step", counted)
        monkeypatch.setattr(Pmap, "compile_train", once)
        monkeypatch.setattr(loop.Run, "evaluate", evaluate)
        monkeypatch.setattr(loop.Run, "test", lambda run: {})
        return main([*self.command.arguments(workdir), *SHORT, *more])


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Command:
    return Command(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def here(command) -> Here:
    return Here(command)


@pytest.fixture(scope="module")
def whole(here, tmp_path_factory):
    """A run that was left alone."""
    path = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert here(patch, path) == 0
    return path


def send_at(monkeypatch, number: int, step: int = STOP):
    """The process sends itself a signal when a step has been dispatched."""
    assert threading.current_thread() is threading.main_thread()
    add = journal.Journal.add

    def patched(self, at, fed, metrics):
        if at == step:
            os.kill(os.getpid(), number)
        add(self, at, fed, metrics)

    monkeypatch.setattr(journal.Journal, "add", patched)


@pytest.fixture(scope="module")
def stopped(here, whole, tmp_path_factory):
    """A run that SIGTERM ended in the midst of an update."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        send_at(patch, signal.SIGTERM)
        assert here(patch, path) == 42
    return path


def proof(workdir) -> dict:
    """``evidence`` of a run without a test."""
    (workdir / report.RESULT).write_text('{"best_step": 0}')
    return evidence(workdir)


def trace(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / report.TRACE).read_text().splitlines()]


def metrics(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / report.METRICS).read_text().splitlines()]


def test_a_signal_finishes_the_step_and_saves(here, stopped, monkeypatch, tmp_path, capsys):
    assert [line["step"] for line in trace(stopped)] == list(range(1, STOP + 1))
    assert (stopped / "checkpoints" / str(STOP)).is_dir()
    before = [signal.getsignal(number) for number in survive.SIGNALS]
    send_at(monkeypatch, signal.SIGINT, step=3)
    assert here(monkeypatch, tmp_path / "run", "--training.log-every", "1") == 42
    traced = [float.fromhex(line["loss"]) for line in trace(tmp_path / "run")]
    assert traced == [line["train/loss"] for line in metrics(tmp_path / "run")]  # exactly
    assert len(set(traced)) == 3
    assert "stopped by SIGINT after step 3, which is saved; repeat the command" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()
    assert [signal.getsignal(number) for number in survive.SIGNALS] == before


def test_a_stopped_run_continues_bit_for_bit(here, whole, stopped, monkeypatch, tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(stopped, path)
    assert here(monkeypatch, path) == 0
    assert f"continuing at step {STOP} of {STEPS}" in capsys.readouterr().out
    assert differences(proof(whole), proof(path)) == []


def without_counts(opt_state):
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf, opt_state)


DROPPED = {
    "iterator": lambda state: state,
    "key": lambda state: state._replace(key=jax.device_put(jax.random.key(1), state.key.sharding)),
    "schedule": lambda state: state._replace(opt_state=without_counts(state.opt_state)),
    "ema": lambda state: state._replace(ema=jax.tree.map(jnp.copy, state.params)),
    "accumulated": lambda state: state._replace(accumulated=jax.tree.map(jnp.zeros_like, state.accumulated)),
}


@pytest.mark.parametrize("part", DROPPED)
def test_whatever_is_not_restored_is_seen(here, whole, stopped, monkeypatch, tmp_path, part):
    """Negative controls of the proof: one part of the saved state is lost."""
    path = tmp_path / "run"
    shutil.copytree(stopped, path)
    restore = Checkpoints.restore

    def partial(self, step, abstract):
        saved = restore(self, step, abstract)
        return Saved(DROPPED[part](saved.state), saved.progress)

    monkeypatch.setattr(Checkpoints, "restore", partial)
    if part == "iterator":
        monkeypatch.setattr(TrainBatches, "set_state", lambda self, state: None)
    assert here(monkeypatch, path) == 0
    found = differences(proof(whole), proof(path))
    assert found
    assert ("trace" in found) == (part != "ema")  # an average is evaluated, but nothing is learned from it


def test_one_program_for_each_shape(here, whole):
    """An epoch and more, over several buckets."""
    examples = [example for line in trace(whole) for example in line["example_ids"]]
    assert len(examples) > len(set(examples))
    found = here.shapes[make_train_step]
    assert len(found) == len(set(found)) == 2


def test_a_recompilation_is_noticed():
    step, again = jax.jit(lambda x: x + 1), []
    with Programs() as programs:
        for number, x in enumerate([np.zeros(2, np.float32), np.zeros(2, np.float32), np.zeros(2, np.int32)]):
            with programs.watched((2,), lambda number=number: again.append(number)):
                step(x)
        with programs.watched((3,), lambda: again.append(3)):
            step(np.zeros(3, np.float32))
    assert again == [2]
    step(np.zeros(4, np.float32))  # no listener is left
    assert programs._compiled == 3


def test_signals_that_come_before_the_first_step_end_the_run_at_once():
    with Signals() as signals:
        with pytest.raises(Stopped, match="stopped by SIGTERM; repeat") as end:
            os.kill(os.getpid(), signal.SIGTERM)
        assert end.value.code == 42
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # the second ends the process, wherever it is
    with Signals() as signals, pytest.raises(Stopped), signals.held():  # at the latest the end of the block raises
        assert ask_around_a_signal(signals) == [False, True]


def ask_around_a_signal(signals: Signals) -> list[bool]:
    before = signals.asked()
    os.kill(os.getpid(), signal.SIGINT)
    return [before, signals.asked()]


def test_an_evaluation_is_broken_off_and_made_up_for(here, monkeypatch, tmp_path):
    path, evaluated = tmp_path / "run", []

    def evaluate(run, state):
        evaluated.append(int(state.step))
        if len(evaluated) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        run.breathe()
        return {"validation/nll": 1.0}, 1.0

    def score() -> dict:
        return json.loads((path / "checkpoints" / str(STEPS) / "metrics" / "metadata").read_text())

    assert here(monkeypatch, path, evaluate=evaluate) == 42
    assert score() == {"best": None}
    assert here(monkeypatch, path, evaluate=evaluate) == 0
    assert score() == {"best": 1.0}
    assert evaluated == [STEPS, STEPS]


def test_a_run_that_died_before_its_first_step_begins_again(here, monkeypatch, tmp_path, capsys):
    """Nothing has been learned at step 0, so nothing is evaluated there."""
    evaluated = []

    def die(stream):
        raise RuntimeError("no batch today")

    with monkeypatch.context() as patch:
        patch.setattr(prefetch.Prefetch, "__next__", die)
        with pytest.raises(RuntimeError, match="no batch today"):
            here(monkeypatch, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "0").is_dir()
    evaluate = lambda run, state: evaluated.append(int(state.step)) or ({"validation/nll": 1.0}, 1.0)  # noqa: E731
    assert here(monkeypatch, tmp_path / "run", evaluate=evaluate) == 0
    assert f"continuing at step 0 of {STEPS}" in capsys.readouterr().out
    assert evaluated == [STEPS]


SECOND = """
    import os, signal, sys
    from train.survive import Signals
    with Signals() as signals, signals.held():
        for _ in range(2):
            os.kill(os.getpid(), int(sys.argv[1]))
        print("still here")
"""
STUCK = """
    import time
    from train.data import prefetch_to_device
    from train.survive import Watchdog
    def stuck():
        yield 1
        time.sleep(1000)
    with Watchdog(0.5) as watchdog, prefetch_to_device(stuck(), lambda x: x) as stream:
        for _ in stream:
            watchdog.alive()
"""


def start(script: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_second_signal_and_a_stuck_thread_end_the_process():
    children = [start(SECOND, str(int(signal.SIGTERM))), start(SECOND, str(int(signal.SIGINT))), start(STUCK)]
    said = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children[:2]] == [-signal.SIGTERM, -signal.SIGINT]  # 143 and 130 to a shell
    assert "still here" not in said[0][0] + said[1][0]
    assert children[2].returncode == 1
    stacks = said[2][1]
    assert "Timeout" in stacks
    assert "in stuck" in stacks  # where the thread is
    assert "in _wait" in stacks  # where the loop is


def test_the_watchdog_hears_of_every_step_and_is_let_go(here, monkeypatch, tmp_path):
    heard = []
    monkeypatch.setattr(survive.faulthandler, "dump_traceback_later", lambda seconds, exit, file: heard.append(seconds))
    monkeypatch.setattr(survive.faulthandler, "cancel_dump_traceback_later", lambda: heard.append("closed"))
    assert here(monkeypatch, tmp_path / "run", "--training.watchdog", "7.5") == 0
    assert heard.count(7.5) >= STEPS
    assert heard[-1] == "closed"
    with Watchdog(0) as watchdog:
        watchdog.alive()
    assert heard[-2:] == ["closed", "closed"]


def test_a_thread_that_ends_without_a_word_is_noticed(monkeypatch):
    monkeypatch.setattr(prefetch, "PATIENCE", 0.01)
    monkeypatch.setattr(prefetch.Prefetch, "_work", lambda self: None)
    with prefetch_to_device(iter([1]), lambda x: x) as stream, pytest.raises(RuntimeError, match="thread that reads ahead"):
        next(stream)


def test_waiting_for_data_is_measured():
    gate = threading.Event()

    def slow():
        yield 1
        gate.wait()
        yield 2

    with prefetch_to_device(slow(), lambda x: x) as stream:
        assert next(stream) == 1
        before = stream.waited
        threading.Timer(0.05, gate.set).start()
        assert next(stream) == 2
        assert stream.waited - before > 0.01
    clock = journal.Clock(0, 10, lambda flops, seconds: flops / seconds / 20, now=iter([100.0, 110.0, 110.0]).__next__)
    clock.flops = 50
    speed = clock.lap(5, waited=2.5)
    assert speed["train/waiting"] == 0.25
    assert speed["train/steps_per_second"] == 0.5
    assert speed["train/model_flops_per_second"] == 5.0
    assert speed["train/utilisation"] == 0.25
    assert clock.seconds_left(5) == 10.0


class Poisoned:
    """A model whose logits are no numbers at some steps."""

    def __init__(self, model, steps):
        self.model, self.config, self.steps, self.now = model, model.config, steps, None

    def apply(self, *arguments, **options):
        outputs = self.model.apply(*arguments, **options)
        bad = (self.now == jnp.array(self.steps)).any()
        return outputs._replace(logits=jnp.where(bad, jnp.nan, outputs.logits))


def test_batches_without_finite_numbers_are_skipped_and_named(here, whole, monkeypatch, tmp_path, capsys):
    """Step 3 alone, then steps 7, 8 and 9, which is one too many."""

    def poisoned(model, *arguments):
        model = Poisoned(model, [3, 7, 8, 9])
        step = make_train_step(model, *arguments)

        def train_step(state, batch, axis=None):
            model.now = state.step + 1
            return step(state, batch, axis)

        return train_step

    path = tmp_path / "run"
    assert here(monkeypatch, path, "--training.max-skipped", "3", make=poisoned) == 4
    out, error = capsys.readouterr()
    lines = trace(path)
    ids = {line["step"]: line["example_ids"] for line in lines}
    assert [line["step"] for line in lines if line["loss"] == "nan"] == [3, 7, 8, 9]
    assert ids == {line["step"]: line["example_ids"] for line in trace(whole)[:9]}
    noted = [line for line in metrics(path) if "skipped_example_ids" in line]
    assert noted == [{"step": step, "skipped_example_ids": ids[step]} for step in (3, 7, 8, 9)]
    told = f"(training.max_skipped), with the examples {journal.listed([*ids[7], *ids[8], *ids[9]])}:"
    assert f"3 batches in a row up to step 9 gave no finite loss and gradient {told}" in error
    told = f"nothing is learned from examples {journal.listed(ids[3])}"
    assert f"step 3: the loss or gradient is not finite, {told}" in out
    assert sorted(step.name for step in (path / "checkpoints").iterdir()) == ["0", "4", "8"][-2:]
    assert here(monkeypatch, path, "--training.max-skipped", "3", make=poisoned) == 4  # in a row, before and after the command
    assert "continuing at step 8" in capsys.readouterr().out


def state_of(step: int) -> State:
    return State(jnp.int32(step), jax.random.key(0), jnp.ones(2), (), Skipped(0, 0))


def test_parameters_that_are_not_finite_are_not_saved():
    state = saver.State(
        step=jnp.int32(3), key=jax.random.key(0), params={"a": jnp.ones(2), "b": jnp.ones(2)}, opt_state=(), skipped=()
    )
    assert saver.all_finite(state)
    for bad in (jnp.nan, jnp.inf):
        broken = state._replace(params={**state.params, "b": jnp.array([0, bad])})
        with pytest.raises(Stopped, match="after step 3 are not finite and not saved") as end:
            saver.Saver(None, None, None).save(broken, {}, {})
        assert end.value.code == 4


class Disk:
    """Checkpoints that can be written only at some steps; a failure shows when the next one is begun."""

    def __init__(self, good):
        self.good, self.newest, self.pending = good, None, None

    def latest(self):
        return self.newest

    def finish(self):
        step, self.pending = self.pending, None
        if step is not None and step not in self.good:
            raise SaveFailed(f"no disk space is left for checkpoint {step}")
        self.newest = step or self.newest

    def save(self, state, *rest):
        self.finish()
        self.pending = int(state.step)


def test_the_average_is_what_is_evaluated(here, whole, monkeypatch, tmp_path):
    """By the loss and by the predictor, which begins with it."""
    shutil.copytree(whole, tmp_path / "run")
    seen = []
    monkeypatch.setattr(loop.evaluate, "teacher_forced", lambda step, params, *rest: seen.append(params) or {"nll": 1.0})
    monkeypatch.setattr(
        loop.evaluate, "decoded", lambda predictor, *rest: seen.append(predictor.params) or ({"error": 1.0}, [])
    )
    monkeypatch.setattr(loop.Run, "draw", lambda *arguments: None)
    real, states = loop.Run.evaluate, []
    more = ("--training.steps", str(STEPS + 1))
    assert here(monkeypatch, tmp_path / "run", *more, evaluate=lambda run, state: states.append(state) or real(run, state)) == 0
    assert len(seen) == 2
    for params in seen:
        chex.assert_trees_all_equal(params, states[0].ema)


def test_failed_saves_are_tried_again_but_not_for_ever():
    warned = []

    class View:
        warn = staticmethod(warned.append)

    config = Experiment(transformer.PRESETS["tiny"], Files(), training=Training(max_failed_saves=3))
    keeper = saver.Saver(Disk({3}), config, View)
    for step in (1, 2, 3, 4, 5):  # 1 and 2 fail, 3 ends the row, 4 fails
        keeper.save(state_of(step), {}, {})
    assert [warning.split(";")[0][-1] for warning in warned] == ["1", "2", "4"]
    keeper.save(state_of(6), {}, {})
    with pytest.raises(Stopped, match="for checkpoint 6") as end:
        keeper.save(state_of(7), {}, {})
    assert end.value.code == 3
    with pytest.raises(Stopped, match="for checkpoint 9") as end:  # the last one must be written
        saver.Saver(Disk({3}), config, View).save(state_of(9), {}, {}, wait=True)
    assert end.value.code == 3


def test_lines_outlive_a_full_disk(tmp_path):
    lines = report.Lines(tmp_path / "lines", 0)
    good = lines._file
    with open("/dev/full", "ab", buffering=0) as full:  # noqa: PTH123
        lines._file = full
        lines.write({"step": 1})
        lines.write({"step": 2})
        assert lines.waiting
    lines._file = good
    lines.write({"step": 3})
    assert not lines.waiting
    lines.close()
    assert [line["step"] for line in report.read_lines(tmp_path / "lines")] == [1, 2, 3]


def test_ids_that_no_table_holds_are_named(here, monkeypatch, tmp_path, capsys):
    mask = np.array([[True, True], [True, False]])
    good = Batch(Tokens(np.array([[4, 9], [2, 99]]), mask), Tokens(np.array([[4, 7], [2, -1]]), mask), np.array([5, 6]))
    check_ids(good, 10, 8)  # what stands at a masked position does not matter
    for side, row, value, message in (("source", 0, 10, "source of example 5"), ("target", 1, -1, "target of example 6")):
        ids = getattr(good, side).ids.copy()
        ids[row, 0] = value
        with pytest.raises(UserError, match=f"the {message} has the token id {value} at position 0, but .* 0 to "):
            check_ids(good._replace(**{side: Tokens(ids, mask)}), 10, 8)
    following = TrainBatches.__next__

    def corrupt(self):
        batch = following(self)
        batch.target.ids[0, 0] = -1
        return batch

    monkeypatch.setattr(TrainBatches, "__next__", corrupt)
    assert here(monkeypatch, tmp_path / "run") == 2
    assert "has the token id -1 at position 0" in capsys.readouterr().err


def test_reading_is_late_enough_for_the_device(monkeypatch):
    """Of the newest steps nothing is asked but to send their numbers."""
    config = Experiment(transformer.PRESETS["tiny"], Files())
    told = journal.Journal(config, state_of(0), None, None)
    read = []
    monkeypatch.setattr(told, "_read", lambda step, fed, metrics: read.append(step))
    fed = journal.Fed(None, (), np.arange(2), 1, 0)
    for step in range(1, 6):
        told.add(step, fed, {"loss": Metric(jnp.float32(1), jnp.float32(1))})
        assert read == list(range(1, step - journal.LATE + 1))
    told.settle()
    assert read == [1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def alone(command) -> dict:
    """What a real command leaves that is not killed."""
    path = command.directory / "alone"
    command.run(path)
    return evidence(path)


def test_killed_commands_continue_bit_for_bit(command, alone):
    """Killed at once after a step, asked to end, killed in the midst of its first deletion, then left alone."""
    path = command.directory / "killed"
    for kill in (Kill("-9", "0.0"), Kill("-15", "0.0"), Kill("delete", "1:half")):
        code, said = command.run_killed(path, kill)
        assert code in kill.codes, said
    said = command.run(path)
    assert int(resumed_from(said)) > 0
    assert differences(alone, evidence(path)) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two mebibytes, and a function that makes it larger."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if sys.platform != "linux" or subprocess.run([*mount, "size=2m", "tmpfs", str(path)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs wants Linux and the rights to do so")
    yield path, lambda: subprocess.run([*mount, "remount,size=64m", str(path)], check=True)
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_ends_a_run_that_goes_on_later(command, alone, small_disk):
    path, enlarge = small_disk
    child = command.start(path / "run")
    said, _ = child.communicate(timeout=300)
    assert child.returncode == 3, said
    assert "no disk space is left for checkpoint" in said
    assert said.count("training goes on and tries again") == 2
    saved = sorted(int(step.name) for step in (path / "run" / "checkpoints").iterdir())
    assert saved
    enlarge()
    assert resumed_from(command.run(path / "run")) == str(saved[-1])
    assert differences(alone, evidence(path / "run")) == []
