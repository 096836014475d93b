"""Checkpoints: what is committed, restored, kept, deleted and cleaned up, and what a full or read-only disk does."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import shutil
import subprocess
import threading
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from runs import copy, model_run

import zoo
from train.checkpoint import Checkpoints, SaveFailed
from train.step import Accumulated, State, new_state
from zoo.__main__ import main as use
from zoo.checkpoint import manifest
from zoo.checkpoint.orbax import find_step
from zoo.core import UserError

TX = optax.adam(0.1)
ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def tiny_state(step: int, ema: bool = False, accumulated: bool = False) -> State:
    state = new_state({"w": jnp.full((2, 3), step, jnp.float32)}, TX, jax.random.key(7))
    state = state._replace(step=jnp.int32(step), opt_state=TX.update(state.params, state.opt_state)[1])
    if ema:
        state = state._replace(ema={"w": jnp.full((2, 3), step / 2)})
    if accumulated:
        state = state._replace(accumulated=Accumulated({"w": jnp.ones((2, 3))}, jnp.float32(5), jnp.int32(1)))
    return state


def shape(shape: tuple, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=ONE)


def abstract(state: State) -> State:
    return jax.tree.map(lambda x: shape(x.shape, x.dtype), jax.eval_shape(lambda: state))


ABSTRACT = abstract(tiny_state(0))


def progress(step: int) -> dict:
    return {"iterator": {"at": step}, "seconds": 1.0}


def save(checkpoints: Checkpoints, step: int, best: float | None = None, state: State | None = None) -> None:
    checkpoints.save(state or tiny_state(step), progress(step), {"kind": "test"}, {"x": 1}, best)


def names(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    yield checkpoints
    checkpoints.close()


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """A run with the steps 1, 2 and 3, to be copied."""
    workdir = tmp_path_factory.mktemp("three")
    checkpoints = Checkpoints(workdir, keep_last=3)
    for step in (1, 2, 3):
        save(checkpoints, step, best=step)
    checkpoints.close()
    return workdir


@pytest.fixture
def run(three, tmp_path) -> Path:
    """The same, to be spoilt."""
    return shutil.copytree(three, tmp_path / "run")


def restored(workdir: Path) -> tuple[int, State]:
    """What a command that is repeated continues from."""
    checkpoints = Checkpoints(workdir)
    step = checkpoints.latest()
    state, place = checkpoints.restore(step, ABSTRACT)
    checkpoints.close()
    chex.assert_trees_all_equal(state, tiny_state(step))
    assert place == progress(step)
    return step


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    assert checkpoints.latest() is None
    for step, best in ((0, None), (1, 0.9), (2, 0.1), (3, float("nan")), (4, 0.6), (5, 0.7)):
        save(checkpoints, step, best)
    checkpoints.finish()
    assert names(tmp_path) == ["2", "4", "5"]
    assert checkpoints.latest() == 5
    assert find_step(tmp_path).name == "2"
    save(checkpoints, 5, 0.0)  # again: measured now
    checkpoints.close()
    assert names(tmp_path) == ["4", "5"]
    assert find_step(tmp_path).name == "5"
    assert restored(tmp_path) == 5


def test_everything_of_a_state_comes_back(tmp_path, checkpoints):
    """Saved with an average and half an update, while its arrays are given away to the next step."""
    expected = tiny_state(3, ema=True, accumulated=True)
    state = jax.tree.map(jnp.copy, expected)
    save(checkpoints, 3, state=state)
    next_step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    jax.block_until_ready(next_step(state._replace(key=None)))
    checkpoints.finish()
    found = checkpoints.restore(3, abstract(expected)).state
    chex.assert_trees_all_equal(found, expected)
    chex.assert_trees_all_equal_dtypes(found, expected)
    items = {path.name for path in (tmp_path / "checkpoints/3").iterdir() if path.is_dir()}
    assert items == {"params", "ema", "optimizer", "data", "model", "experiment", "metrics"}


def test_a_state_moves_between_devices(checkpoints):
    """Saved sharded over 8 devices, restored on 1, and on 4 in another way."""
    eight = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    four = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:4])
    params = {"w": np.arange(64, dtype=np.float32).reshape(8, 8)}
    state = new_state(jax.device_put(params, NamedSharding(eight, P("data"))), TX, jax.random.key(0))
    save(checkpoints, 0, state=state)
    checkpoints.finish()
    for place in (NamedSharding(four, P(None, ("model", "data"))), ONE):
        template = abstract(state)
        template = template._replace(params={"w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=place)})
        found = checkpoints.restore(0, template).state
        assert found.params["w"].sharding == place
        np.testing.assert_array_equal(found.params["w"], params["w"])


@pytest.mark.parametrize("saved", ["neither", "both"])
def test_other_settings_are_named(checkpoints, saved):
    """A checkpoint with more or less than the experiment wants is refused in one sentence that names the field."""
    state = tiny_state(1, saved == "both", saved == "both")
    save(checkpoints, 1, state=state)
    checkpoints.finish()
    for part, field in (("ema", "ema"), ("accumulated", "accumulate")):
        other = tiny_state(1, True, True)._replace(**{part: None}) if saved == "both" else tiny_state(1, **{part: True})
        how = ("with", "without") if saved == "both" else ("without", "with")
        message = f"1 was saved {how[0]} optimizer.{field}, and the experiment is {how[1]} it: repeat"
        with pytest.raises(UserError, match=message):
            checkpoints.restore(1, abstract(other))
    wanted = abstract(state)
    sgd = optax.sgd(0.1, momentum=0.9)
    for message, change in {
        r"w in .*params has the shape \(2, 3\), but the model wants \(2, 4\)": {"params": {"w": shape((2, 4))}},
        "w in .*params is of type float32, but the model wants bfloat16": {"params": {"w": shape((2, 3), jnp.bfloat16)}},
        "params is of another model: missing v; not taken w": {"params": {"v": shape((2, 3))}},
        "holds the state of another optimizer, missing opt_state/0/trace/w; not taken opt_state/0/count": {
            "opt_state": jax.eval_shape(sgd.init, wanted.params)
        },
    }.items():
        with pytest.raises(UserError, match=message):
            checkpoints.restore(1, wanted._replace(**change))


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, checkpoints, monkeypatch):
    """``save`` returns before the manifest is there; the next one begins only when all of the one before is."""
    events, go = [], threading.Event()

    def listed(event, action, wait=None):
        def wrapped(*args, **kw):
            if wait is not None:
                assert wait.wait(60)
            result = action(*args, **kw)
            events.append(event)
            return result

        return wrapped

    def finish(finish=checkpoints.finish):
        go.set()
        finish()

    monkeypatch.setattr(manifest, "write", listed("manifest", manifest.write, wait=go))
    monkeypatch.setattr(checkpoints.checkpointer, "save", listed("orbax", checkpoints.checkpointer.save))
    monkeypatch.setattr(checkpoints, "finish", finish)
    checkpoints.pending = None
    go.clear()
    save(checkpoints, 1)
    go.clear()
    assert "1" not in names(tmp_path)
    assert checkpoints.latest() is None
    save(checkpoints, 2)
    assert names(tmp_path)[0] == "1"
    checkpoints.finish()
    assert events == ["orbax", "manifest", "orbax", "manifest"]


@pytest.mark.parametrize("call", ["save", "finish", "close"])
@pytest.mark.parametrize("where", ["orbax", "manifest"])
def test_a_failed_save_is_raised_by_the_next_call(tmp_path, monkeypatch, call, where):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    checkpoints.finish()

    def fail(*args, **kw):
        raise OSError(errno.EIO, "Input/output error")

    if where == "manifest":
        monkeypatch.setattr(manifest, "write", fail)
    else:
        (tmp_path / "checkpoints/2.saving").touch()
    save(checkpoints, 2)
    following = {"save": lambda: save(checkpoints, 3), "finish": checkpoints.finish, "close": checkpoints.close}
    with pytest.raises(
        SaveFailed, match=r"checkpoint 2 in .* could not be written \(.*(output error|already exists.*)\); earl"
    ):
        following[call]()
    assert names(tmp_path) == ["1"]
    assert checkpoints.latest() == 1
    if call == "close":
        return
    monkeypatch.undo()
    save(checkpoints, 4)
    checkpoints.close()
    assert restored(tmp_path) == 4


def test_a_fault_of_the_program_is_not_taken_for_a_full_disk(checkpoints, monkeypatch):
    monkeypatch.setattr(manifest, "write", lambda path: None)
    save(checkpoints, 1)
    with pytest.raises(TypeError, match="positional"):
        checkpoints.finish()


class Killed(BaseException):
    """Stands for kill -9: nothing of ours may run after it."""


@pytest.mark.parametrize("again", [False, True])
def test_a_kill_at_any_moment_of_a_commit_leaves_whole_steps(three, ground, monkeypatch, again):
    """Stop before each change of the disk in turn, from the manifest to the last file of the step that is deleted."""
    source, workdir = ground / f"source-{again}", ground / f"run-{again}"
    shutil.copytree(three, source)
    (source / "checkpoints/3" / manifest.MANIFEST).unlink()
    (source / "checkpoints/3").rename(source / "checkpoints/3.saving")
    if again:
        shutil.copytree(three / "checkpoints/3", source / "checkpoints/3")
    workdir.mkdir()
    checkpoints = Checkpoints(workdir, keep_last=1)
    left, seen = 0, []
    real = {name: getattr(os, name) for name in ("rename", "replace", "unlink", "rmdir")}

    def dying(name):
        def call(*args, **kw):
            nonlocal left
            if left == 0:
                seen.append(name)
                raise Killed
            left -= 1
            return real[name](*args, **kw)

        return call

    for moment in itertools.count():
        copy(source, workdir)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: None)
            for name in real:
                patch.setattr(os, name, dying(name))
            left = moment
            try:
                checkpoints.commit(3)
            except Killed:
                pass
            else:
                break
        after = Checkpoints(workdir, keep_last=1)
        after.close()
        found = names(workdir)
        possible = (["1", "2", "3"], ["1", "3"], *([] if again else [["1", "2"]]))
        assert found in possible, f"stopped before {seen[-1]}, call {moment}"
        for name in found:
            manifest.verify(workdir / "checkpoints" / name, int(name))
        assert after.latest() == int(found[-1])
    checkpoints.close()
    assert names(workdir) == ["1", "3"]
    assert set(seen) == set(real)
    assert len(seen) > 40


def test_what_is_not_ours_is_neither_taken_nor_touched(run):
    directory = run / "checkpoints"
    for name in (
        "9",
        "7.saving.orbax-checkpoint-tmp",
        "8.deleting/params",
        "10/notes",
        "04/params",
        "²/params",
        "1e3",
        "-5/params",
    ):
        (directory / name).mkdir(parents=True)
    (directory / "7.deleting").write_text("a file")
    (directory / "12").write_text("a file")
    checkpoints = Checkpoints(run)
    assert checkpoints.latest() == 3
    foreign = ["-5", "04", "10", "12", "1e3", "9", "²"]
    assert names(run) == sorted(["1", "2", "3", *foreign])
    for step in (9, 12):
        save(checkpoints, step)
    checkpoints.close()
    assert names(run) == sorted({"1", "9", "12", "damaged", *foreign})  # 1 is the best
    assert sorted(path.name for path in (directory / "damaged").iterdir()) == ["12-0", "9-0"]
    assert restored(run) == 12


def test_damaged_steps_are_named_and_set_aside(run, caplog):
    directory = run / "checkpoints"
    (directory / "damaged" / "3-0").mkdir(parents=True)
    (directory / "3" / "params" / "manifest.ocdbt").unlink()
    (directory / "2" / manifest.MANIFEST).unlink()
    assert restored(run) == 1
    assert sorted(path.name for path in (directory / "damaged").iterdir()) == ["2-0", "3-0", "3-1"]
    assert [record.getMessage().partition("moved to ")[2] for record in caplog.records] == [
        f"{directory}/damaged/3-1: 'params/manifest.ocdbt' is missing",
        f"{directory}/damaged/2-0: it has no manifest.json",
    ]


def test_a_run_whose_every_step_is_damaged_does_not_begin_again(run):
    for step in "123":
        path = run / "checkpoints" / step / "_CHECKPOINT_METADATA"
        path.write_bytes(path.read_bytes()[::-1])
    for _ in range(2):
        with pytest.raises(UserError, match=r"every checkpoint in .* is damaged \(3: '_CHECK.*; 2: .*; 1: .* has changed"):
            Checkpoints(run)
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        zoo.load(run)
    assert names(run) == ["1", "2", "3"]


def test_an_older_step_is_verified_when_it_is_restored(run):
    checkpoints = Checkpoints(run)
    shutil.copy(run / "checkpoints/3/manifest.json", run / "checkpoints/2/manifest.json")
    with pytest.raises(UserError, match=r"2 is damaged: its manifest\.json is of another step, 3"):
        checkpoints.restore(2, ABSTRACT)
    checkpoints.close()


def big_state(step: int) -> State:
    """A million bytes in its parameters, three in all."""
    params = {"w": jax.random.normal(jax.random.key(step), (500, 500))}
    return new_state(params, TX, jax.random.key(0))._replace(step=jnp.int32(step))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MiB, for those who may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_named_and_loses_nothing(small_disk, monkeypatch):
    """Full before a save, full in the midst of one, and free again."""
    checkpoints = Checkpoints(small_disk)
    save(checkpoints, 1, state=big_state(1))
    checkpoints.finish()
    (small_disk / "other").write_bytes(bytes(3 * 2**20))
    with pytest.raises(
        SaveFailed, match=r"no disk space is left for checkpoint 2 in .*: 3\.9 MiB are needed and 2\.\d are free"
    ):
        save(checkpoints, 2, state=big_state(2))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**30, 0, 2**30))
        save(checkpoints, 3, state=big_state(3))
        with pytest.raises(SaveFailed, match=r"no disk space is left for checkpoint 3 in .*; earlier checkpoints are intact"):
            checkpoints.finish()
    assert names(small_disk) == ["1"]
    (small_disk / "other").unlink()
    save(checkpoints, 4, state=big_state(4))
    checkpoints.finish()
    found = checkpoints.restore(4, abstract(big_state(0))).state
    chex.assert_trees_all_equal(found, big_state(4))
    checkpoints.close()
    assert names(small_disk) == ["1", "4"]
    Checkpoints(small_disk).close()


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_read_only_disk_is_named(small_disk):
    """And none of Orbax's threads waits for what will never come: the command could not end."""
    checkpoints = Checkpoints(small_disk)
    before = set(threading.enumerate())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    save(checkpoints, 1)
    with pytest.raises(SaveFailed, match=r"checkpoint 1 in .* could not be written \(.*Read-only file system"):
        checkpoints.finish()
    checkpoints.close()
    assert set(threading.enumerate()) <= before


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, list]:
    """A run of a model, and its parameters at each step."""
    workdir = tmp_path_factory.mktemp("models")
    return workdir, model_run(workdir)


def test_the_best_step_that_verifies_is_loaded(models, tmp_path, caplog):
    """With the average of its parameters, if there is one."""
    workdir, params = models
    halves = [jax.tree.map(lambda x: x / 2, tree) for tree in params]
    chex.assert_trees_all_equal(zoo.load(workdir).params, halves[2])
    chex.assert_trees_all_equal(zoo.load(workdir / "checkpoints/1").params, params[1])
    run = shutil.copytree(workdir, tmp_path / "run")
    (run / "checkpoints/2/stray").touch()
    with pytest.raises(UserError, match=r"checkpoints/2 is damaged: 'stray' is not in its manifest\.json; load another one"):
        zoo.load(run / "checkpoints/2")
    chex.assert_trees_all_equal(zoo.load(run).params, halves[3])
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"the checkpoint {run}/checkpoints/2 is damaged and not used: 'stray' is not in its manifest.json"
    ]
    (run / "checkpoints/3").rename(run / "best")
    chex.assert_trees_all_equal(zoo.load(run / "best").params, halves[3])


def test_parameters_are_averaged(models, tmp_path, capsys):
    workdir, params = models
    assert use(["export", str(workdir), str(tmp_path / "two"), "--average", "2"]) == 0
    mean = jax.tree.map(lambda x, y: (x + y) / 2, params[2], params[3])
    chex.assert_trees_all_close(zoo.load(tmp_path / "two").params, mean, rtol=1e-6)
    run = shutil.copytree(workdir, tmp_path / "run")
    (run / "checkpoints/2/stray").touch()
    assert use(["export", str(run), str(tmp_path / "other"), "--average", "2"]) == 0
    mean = jax.tree.map(lambda x, y: (x + y) / 2, params[1], params[3])
    chex.assert_trees_all_close(zoo.load(tmp_path / "other").params, mean, rtol=1e-6)
    capsys.readouterr()
    for directory, count, whole in ((run, 3, 2), (workdir, 9, 3), (tmp_path / "two", 1, 0)):
        assert use(["export", str(directory), str(tmp_path / "none"), "--average", str(count)]) == 2
        said = capsys.readouterr().err
        assert f"error: --average is {count}, but {directory} has {whole} whole checkpoints" in said
    assert use(["export", str(workdir), str(tmp_path / "none"), "--average", "0"]) == 2
    assert "error: --average is 0: it must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_manifest_is_the_documented_one(three):
    """By the definition, with another implementation of sha256sum's."""
    step = three / "checkpoints/3"
    listed = json.loads((step / "manifest.json").read_text())
    assert listed["step"] == 3
    lines = "".join(f"{digest}  {name}\n" for name, (_, digest) in listed["files"].items())
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet"], input=lines, text=True, cwd=step, check=True)
    found = {path.relative_to(step).as_posix() for path in step.rglob("*") if path.is_file()}
    assert found == {"manifest.json", *listed["files"]}


def test_the_manifest_is_written_when_all_else_is_on_the_disk(three, tmp_path, monkeypatch):
    """Every file and directory is synced before the manifest gets its name, and the directory once more after that."""
    step = shutil.copytree(three / "checkpoints/3", tmp_path / "3")
    (step / "manifest.json").unlink()
    synced, replaced = [], os.replace

    def replace(source, target):
        assert set(step.rglob("*")) <= set(synced)
        assert step in synced
        synced.clear()
        replaced(source, target)

    monkeypatch.setattr(manifest, "sync", synced.append)
    monkeypatch.setattr(os, "replace", replace)
    manifest.write(step, 3)
    assert synced == [step]
    manifest.verify(step, 3)
