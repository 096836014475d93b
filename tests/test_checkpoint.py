"""Checkpoints: what is committed, restored, kept, deleted and cleaned up, and what a full or read-only disk does."""

from __future__ import annotations

import shutil

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from train.checkpoint import Checkpoints, SaveFailed
from train.step import Accumulated, State, new_state
from zoo.checkpoint.orbax import find_step
from zoo.core import UserError

TX = optax.adam(0.1)


def tiny_state(step: int, ema: bool = False, accumulated: bool = False) -> State:
    state = new_state({"w": jnp.full((2, 3), step, jnp.float32)}, TX, jax.random.key(7))
    state = state._replace(step=jnp.int32(step), opt_state=TX.update(state.params, state.opt_state)[1])
    if ema:
        state = state._replace(ema={"w": jnp.full((2, 3), step / 2)})
    if accumulated:
        state = state._replace(accumulated=Accumulated({"w": jnp.ones((2, 3))}, jnp.float32(5), jnp.int32(1)))
    return state


def abstract(state: State) -> State:
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), jax.eval_shape(lambda: state))


ABSTRACT = abstract(tiny_state(0))


def progress(step: int) -> dict:
    return {"iterator": {"at": step}, "seconds": 1.0}


def save(checkpoints: Checkpoints, step: int, best: float | None = None, state: State | None = None) -> None:
    checkpoints.save(state or tiny_state(step), progress(step), {"kind": "test"}, {"x": 1}, best)


def names(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    assert checkpoints.latest() is None
    for step, best in ((0, None), (1, 0.9), (2, 0.1), (3, float("nan")), (4, 0.6), (5, 0.7)):
        save(checkpoints, step, best)
    checkpoints.finish()
    assert names(tmp_path) == ["2", "4", "5"]
    assert find_step(tmp_path).name == "2"
    checkpoints.close()
    again = Checkpoints(tmp_path, keep_last=2)
    assert again.latest() == 5
    state, place = again.restore(5, ABSTRACT)
    chex.assert_trees_all_equal(state, tiny_state(5))
    assert place == progress(5)
    save(again, 6, 0.8)
    again.close()
    assert names(tmp_path) == ["2", "5", "6"]
