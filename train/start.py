"""What a run starts from, if not from random parameters (``Experiment.init_from``).

All is read once, when the run starts: its checkpoints hold the whole model, with the tokenizers and what is needed to write it
back as it was published, so that a run goes on when the directory that it started from is gone.

``model`` and ``decoding`` of a config file say what is to differ from the model that it starts from: a field that is left at
its class's default is that model's. Options of the command line are always followed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import zoo
from train.data import Batching, Example, Recordings
from train.experiment import Experiment
from zoo.checkpoint.directory import load_settings, predictor_from, unread
from zoo.checkpoint.orbax import CHECKPOINTS, read_json, steps
from zoo.checkpoint.rules import some
from zoo.core import ModelConfig, PyTree, UserError, flatten_params, unflatten_params
from zoo.labels import Labels
from zoo.predictor_base import PredictorBase
from zoo.speech import told, window_of
from zoo.variants import abstract_params


def settings(experiment: Experiment, workdir: Path) -> PredictorBase | None:
    """The model, without weights, that a run goes on with or starts from; None if that is only what the experiment says."""
    saved = steps(workdir / CHECKPOINTS)
    if saved:
        return predictor_from(read_json(saved[-1], "model"), str(saved[-1]), unread)
    return load_settings(experiment.init_from) if experiment.init_from else None


def filled(experiment: Experiment, workdir: Path) -> Experiment:
    """The experiment with the model and the decoding of what it starts from, where it says nothing else.

    Raises:
      UserError: that is no model, or one of another variant.
    """
    known = settings(experiment, workdir) if experiment.init_from else None
    if known is None:
        return experiment
    config = known.model.config
    if type(config) is not type(experiment.model):
        raise UserError(
            f"init_from is {experiment.init_from}, which holds a {type(config).__name__}, but the experiment's model is a "
            f"{type(experiment.model).__name__}: take a config of that variant"
        )
    model = over(config, experiment.model)
    # The tokenizers tell these, and a new head has its own.
    model = dataclasses.replace(model, source_vocab_size=0, target_vocab_size=0)
    return dataclasses.replace(experiment, model=model, decoding=over(known.decoding, experiment.decoding))


def over(base: Any, changes: Any) -> Any:
    """``base`` with the fields of ``changes`` that are not at their class's default.

    >>> over(zoo.Decoding(beams=4, max_len=9), zoo.Decoding(max_len=7))
    Decoding(beams=4, ..., max_len=7, ...)
    """
    plain = type(changes)()
    names = [field.name for field in dataclasses.fields(changes)]
    given = {name: getattr(changes, name) for name in names if getattr(changes, name) != getattr(plain, name)}
    return dataclasses.replace(base, **given)


def labels(target: Any, examples: Sequence[Example]) -> Labels:
    """Those of the model that a run starts from, if all that are to be learned are among them; else those of the examples."""
    found = {example.target for example in examples}
    return target if isinstance(target, Labels) and found <= set(target.names) else Labels.train(found)


def batching(config: Experiment) -> Batching:
    """With the limits that follow from the model: a label is one token, and of sound a window is read."""
    if config.model.wants_labels:
        return dataclasses.replace(config.batching, max_target_len=1)
    if not isinstance(config.data, Recordings):
        return config.batching
    most = min(config.batching.max_target_len, config.model.max_len)
    return dataclasses.replace(config.batching, max_source_len=window_of(config.model), max_target_len=most)


def origin(known: PredictorBase, config: Experiment) -> dict[str, Any] | None:
    """What the published files say beside the model; None for a model of other parameters, which has files of its own.

    A model that has learned to write down a language is told it from then on.
    """
    configs = known.model.config, config.model
    old, new = ({path: x.shape for path, x in flatten_params(abstract_params(c)).items()} for c in configs)
    if old != new or known.origin is None or not isinstance(config.data, Recordings):
        return known.origin if old == new else None
    return told(known.origin, config.data.language, config.data.task)


def params(experiment: Experiment, config: ModelConfig, mesh: jax.sharding.Mesh, initial: Any) -> tuple[PyTree, list[str]]:
    """The parameters that a run begins with, float32, each device's part of them on it; and the paths of those that are new.

    Args:
      experiment: for its ``init_from``.
      config: of the run's model. What it has and the other has not, such as a new head, is new.
      mesh: the devices.
      initial: () -> random parameters.

    Raises:
      UserError: it has other sizes than the run's model, or nothing in common with it.
    """
    loaded = zoo.load(experiment.init_from, jnp.float32, mesh)
    found, wanted = flatten_params(loaded.params), flatten_params(abstract_params(config))
    labels = loaded.model.config.target_vocab_size, config.target_vocab_size
    new = []
    for path, leaf in wanted.items():
        shape = found[path].shape if path in found else None
        if shape != leaf.shape:
            if shape is not None and tuple(labels[1] if size == labels[0] else size for size in shape) != leaf.shape:
                raise UserError(
                    f"init_from is {experiment.init_from}, where {path} has the shape {shape}, but the experiment's model "
                    f"wants {leaf.shape}: leave the sizes of the model out"
                )
            new.append(path)
    if len(new) == len(wanted):
        raise UserError(f"init_from is {experiment.init_from}, which has none of the parameters wanted, {some(new)}")
    fresh = jax.jit(lambda: {path: x for path, x in flatten_params(initial()).items() if path in new})() if new else {}
    return unflatten_params({path: fresh[path] if path in new else found[path] for path in wanted}), new
