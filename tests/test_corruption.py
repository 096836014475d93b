"""Damaged and foreign checkpoints: every damage is detected or harmless, and nothing but a UserError comes of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import copy, model_run

import zoo
from train.checkpoint import Checkpoints
from train.step import State, new_state
from zoo.checkpoint import manifest
from zoo.checkpoint.orbax import read_tree, steps
from zoo.core import UserError

DAMAGES = 300
ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
TX = optax.adam(0.1)


def make_state(step: int) -> State:
    """A few kilobytes, different in every step."""
    params = {"w": jax.random.normal(jax.random.key(step), (16, 20)), "b": {"c": jnp.full(3, step, jnp.float32)}}
    state = new_state(params, TX, jax.random.key(step))
    return state._replace(step=jnp.int32(step), opt_state=TX.update(params, state.opt_state)[1], ema=params)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=ONE), jax.eval_shape(lambda: tree))


STATES = {step: make_state(step) for step in (1, 2, 3)}
ABSTRACT = abstract(STATES[1])


@pytest.fixture(scope="module")
def three(ground) -> Path:
    """A run with the steps 1, 2 and 3."""
    (ground / "three").mkdir()
    checkpoints = Checkpoints(ground / "three", keep_last=3)
    for step, state in STATES.items():
        checkpoints.save(state, {"step": step}, {"kind": "test"}, {"x": 1}, best=step)
    checkpoints.close()
    return ground / "three"


@pytest.fixture(scope="module")
def models(ground) -> Path:
    """A run of a model that ``zoo.load`` reads."""
    (ground / "models").mkdir()
    model_run(ground / "models")
    return ground / "models"


def replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def contents(directory: Path) -> dict[str, bytes]:
    """Relative path -> bytes; links by what they point to."""
    return {
        path.relative_to(directory).as_posix(): bytes(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    }


# The damages: each changes something in ``step``, a directory of a run with the steps 1, 2 and 3.


def some_file(rng: np.random.Generator, step: Path) -> Path:
    """Any file, the manifest once in four times."""
    found = sorted(path for path in step.rglob("*") if path.is_file())
    return step / manifest.MANIFEST if rng.random() < 0.25 else found[rng.integers(len(found))]


def flipped_bits(rng, step):
    path = some_file(rng, step)
    data = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    replace(path, bytes(data))


def zeroed_page(rng, step):
    path = some_file(rng, step)
    data = bytearray(path.read_bytes())
    page = 512
    start = page * rng.integers(1 + (len(data) - 1) // page)
    end = min(start + page, len(data))
    data[start:end] = bytes(end - start)
    replace(path, bytes(data))


def truncated_file(rng, step):
    path = some_file(rng, step)
    data = path.read_bytes()
    replace(path, data[: rng.integers(len(data))])


def lengthened_file(rng, step):
    path = some_file(rng, step)
    replace(path, path.read_bytes() + rng.bytes(rng.integers(1, 100)))


def missing_file(rng, step):
    some_file(rng, step).unlink()


def missing_directory(rng, step):
    folders = sorted(path for path in step.rglob("*") if path.is_dir())
    shutil.rmtree(folders[rng.integers(len(folders))])


def stray_file(rng, step):
    folders = [step.parent, step, *sorted(path for path in step.rglob("*") if path.is_dir())]
    (folders[rng.integers(len(folders))] / rng.choice(["9", "notes.txt", ".hidden", "commit_success.txt.tmp"])).write_bytes(
        b"?"
    )


def empty_step(rng, step):
    (step.parent / str(rng.choice([0, 4, 9, 10**9]))).mkdir()


def emptied_step(rng, step):
    shutil.rmtree(step)
    step.mkdir()


def exchanged_files(rng, step):
    one, other = some_file(rng, step), some_file(rng, step)
    data = one.read_bytes(), other.read_bytes()
    replace(one, data[1])
    replace(other, data[0])


def file_of_another_step(rng, step):
    path = some_file(rng, step)
    other = step.parent / str(1 + int(step.name) % 3) / path.relative_to(step)
    if other.is_file():  # OCDBT names some files by chance
        replace(path, other.read_bytes())
    else:
        path.rename(path.with_name("renamed"))


def manifest_of_another_step(rng, step):
    replace(step / manifest.MANIFEST, (step.parent / str(1 + int(step.name) % 3) / manifest.MANIFEST).read_bytes())


def duplicated_file(rng, step):
    path = some_file(rng, step)
    shutil.copy(path, path.with_name(path.name + rng.choice(["-copy", ".bak", "0"])))


def link_for_a_file(rng, step):
    path = some_file(rng, step)
    target = path.rename(step.parent / "elsewhere")
    path.symlink_to(target)


def renamed_step(rng, step):
    step.rename(step.parent / str(rng.choice([0, 5, 40])))


def duplicated_step(rng, step):
    shutil.copytree(step, step.parent / rng.choice(["4", "50", "03", f"{step.name}-copy"]))


KINDS = (
    flipped_bits,
    zeroed_page,
    truncated_file,
    lengthened_file,
    missing_file,
    missing_directory,
    stray_file,
    empty_step,
    emptied_step,
    exchanged_files,
    file_of_another_step,
    manifest_of_another_step,
    duplicated_file,
    link_for_a_file,
    renamed_step,
    duplicated_step,
)


def test_every_damage_is_detected_or_harmless(three, ground, caplog):
    """Seeded damages of a run. What must be found out is known from the bytes themselves, not from manifests."""
    whole = {int(path.name): contents(path) for path in steps(three / "checkpoints")}
    detected = harmless = 0
    restored = set()
    for number in range(DAMAGES):
        rng = np.random.default_rng(number)
        run = copy(three, ground / "run")
        kind = KINDS[number % len(KINDS)]
        kind(rng, run / "checkpoints" / str(rng.choice([1, 2, 3], p=[0.2, 0.2, 0.6])))
        where = f"damage {number}, {kind.__name__}"
        truth = {}
        for path in steps(run / "checkpoints"):
            now = contents(path)
            truth[path] = now == whole.get(int(path.name))
            try:
                manifest.verify(path, int(path.name))
            except manifest.Damaged:
                assert not truth[path], f"{where}: a whole step was refused"
            else:
                now.pop(manifest.MANIFEST)
                expected = whole[int(path.name)]
                assert now == {name: expected[name] for name in expected if name != manifest.MANIFEST}, where
        caplog.clear()
        checkpoints = Checkpoints(run)
        step, newest = checkpoints.latest(), max(int(path.name) for path, good in truth.items() if good)
        spoilt = contents(run / "checkpoints" / str(step)) != whole[step]  # only blanks in its manifest can have changed
        if spoilt or step not in restored or number % 20 == 0:
            found = checkpoints.restore(step, ABSTRACT)
            chex.assert_trees_all_equal(found.state, STATES[step])
            assert found.progress == {"step": step}
            restored.add(step)
        checkpoints.close()
        assert step == newest or (spoilt and step > newest), where
        damaged = [path for path, good in truth.items() if not good and int(path.name) > step]
        aside = run / "checkpoints" / "damaged"
        assert sorted(path.name for path in damaged) == sorted(path.name.partition("-")[0] for path in aside.glob("*")), where
        assert len(caplog.records) == len(damaged), where
        detected, harmless = detected + bool(damaged), harmless + (not damaged)
    assert detected + harmless == DAMAGES
    assert detected > DAMAGES / 4
    assert restored == {2, 3}


# Foreign checkpoints: whoever writes the files can write the manifest.

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.sampled_from([10**12, -1, "", "float64", "int4", "../..", "os.system", "jax.Array", "string"])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value, path=()) -> list[tuple]:
    """The paths of all nodes of a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def changed(value, path: tuple, new):
    """The value with another node at a place."""
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = changed(value[path[0]], path[1:], new)
    return copied


def is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return path.name != manifest.MANIFEST


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=int(os.environ.get("FUZZ", 60)), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_foreign_metadata_gives_the_state_or_an_error(three, ground, data):
    """Any node of any JSON file is replaced, and the manifest written anew."""
    run = copy(three, ground / "foreign")
    mutate(data, run / "checkpoints" / "3")
    with contextlib.closing(Checkpoints(run)) as checkpoints, contextlib.suppress(UserError):
        found = checkpoints.restore(3, ABSTRACT)
        chex.assert_trees_all_equal(found.state, STATES[3])


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=int(os.environ.get("FUZZ", 25)), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_foreign_models_are_loaded_or_refused(models, ground, data):
    """The same through ``zoo.load``; what is loaded says something."""
    run = copy(models, ground / "foreign")
    mutate(data, run / "checkpoints" / "2", ("params", "ema", "model", "metrics"))
    with contextlib.suppress(UserError):
        assert isinstance(zoo.load(run), zoo.Predictor)


def mutate(data: st.DataObject, step: Path, items: tuple[str, ...] = ("",)) -> None:
    """Replace one node of a JSON file of these items, and write the manifest anew."""
    found = sorted(path for item in items for path in (step / item).rglob("*") if path.is_file() and is_json(path))
    path = data.draw(st.sampled_from(found))
    value = json.loads(path.read_bytes())
    replace(path, json.dumps(changed(value, data.draw(st.sampled_from(places(value))), data.draw(JSON))).encode())
    (step / manifest.MANIFEST).unlink()
    manifest.write(step, int(step.name))


@pytest.mark.parametrize(
    ("shape", "chunks", "wanted", "message"),
    [
        ((10**12,), (10**12,), (10**12,), r"absurd has [\d,]+ bytes, but the model wants 4,000,000,000,000: the checkpoint is"),
        ((10**12,), (1,), (2, 3), r"w in .* has the shape \(1000000000000,\), but the model wants \(2, 3\)"),
        ((2, 3), (10**6, 10**6), (2, 3), r"w in .* is stored in parts of \(1000000, 1000000\), larger than itself"),
    ],
)
def test_absurd_arrays_are_refused_before_they_are_read(ground, shape, chunks, wanted, message):
    """Arrays without a byte on the disk, as large as the file says."""
    path = ground / "absurd"
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, {"w": jnp.ones((2, 3))}, force=True)
    metadata = {"shape": shape, "chunks": chunks, "dtype": "<f4", "fill_value": None, "order": "C", "compressor": None}
    store = {"driver": "ocdbt", "base": f"file://{path}/", "path": "w/"}
    tensorstore.open(
        {"driver": "zarr", "kvstore": store, "metadata": {**metadata, "filters": None, "dimension_separator": "."}},
        create=True,
        delete_existing=True,
    ).result()
    with pytest.raises(UserError, match=message):
        read_tree(path, {"w": jax.ShapeDtypeStruct(wanted, jnp.float32, sharding=ONE)})
