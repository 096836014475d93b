"""Writes a run's checkpoints; one that cannot be written is no reason to stop at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from train import experiment, hosts
from train.checkpoint import Checkpoints, SaveFailed
from train.experiment import Experiment
from train.step import State
from train.survive import CANNOT_SAVE, NOT_FINITE, Stopped
from train.view import View
from zoo.core import UserError


class Saver:
    """Saves what is worth it, says loudly what could not be saved, and stops the run after too many failures in a row."""

    def __init__(self, checkpoints: Checkpoints, config: Experiment, view: View):
        self.checkpoints, self.config, self.view = checkpoints, config, view
        self._failed = 0  # in a row

    def save_first(self, state: State, progress: dict, model: dict) -> None:
        """Before the first step: a disk that is full, read-only or broken is known before the first hour is spent."""
        self.save(state, progress, model, wait=True)
        if hosts.first():
            try:
                self.checkpoints.verify(0)
            except UserError as error:
                raise Stopped(CANNOT_SAVE, str(error)) from error

    def save(self, state: State, progress: dict, model: dict, best: float | None = None, wait: bool = False) -> None:
        """A checkpoint.

        Args:
          state: what is saved.
          progress: the place in the data and the seconds spent.
          model: what ``zoo.load`` needs beside the weights.
          best: the score that the best checkpoint is chosen by; None: not measured.
          wait: until it is on the disk, since there may be no later one.

        Raises:
          Stopped: this one must be written and cannot, too many could not, or there are parameters not worth keeping.
        """
        if not bool(all_finite(state)):
            raise Stopped(
                NOT_FINITE,
                f"the parameters after step {int(state.step)} are not finite and not saved, the checkpoints before are good: "
                "lower optimizer.learning_rate in a new --workdir",
            )
        with self._may_fail():
            newest = self.checkpoints.latest()
            self.checkpoints.finish()
            if self.checkpoints.latest() != newest:
                self._failed = 0
        with self._may_fail(must=wait):
            self.checkpoints.save(state, progress, model, experiment.to_json(self.config), best)
            if wait:
                self.checkpoints.finish()

    @contextlib.contextmanager
    def _may_fail(self, must: bool = False) -> Iterator[None]:
        try:
            yield
        except SaveFailed as error:
            self._failed += 1
            if must or self._failed >= self.config.training.max_failed_saves:
                raise Stopped(CANNOT_SAVE, str(error)) from error
            self.view.warn(f"{error}; training goes on and tries again")


@jax.jit
def all_finite(state: State) -> jax.Array:
    """Whether no floating-point number of the state is infinite or none at all."""
    numbers = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in numbers]).all()
