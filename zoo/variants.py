"""The table of variants: every module of this package that has ``PRESETS``. A new file is in it the day it is added."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import jax

import zoo
from zoo.core import SPECIAL_TOKENS, ModelConfig, PyTree, UserError

# The least and the most of a model's numbers, by the end of the field's name; else 1 to 2**20 for whole ones.
BOUNDS = {"vocab_size": (0, 2**24), "_id": (0, 2**24), "layers": (1, 1000), "dropout": (0, 1)}


class Row(NamedTuple):
    """One preset, as ``python -m zoo list`` and the README print it."""

    variant: str
    preset: str
    paper: str
    parameters: int
    task: str


def variants() -> dict[str, ModuleType]:
    """Name -> module of every variant, by listing this package's own files."""
    modules = {info.name: info for info in pkgutil.iter_modules(zoo.__path__) if not info.ispkg and info.name != "__main__"}
    loaded = {name: importlib.import_module(f"zoo.{name}") for name in sorted(modules)}
    return {name: module for name, module in loaded.items() if hasattr(module, "PRESETS")}


def table() -> list[Row]:
    """A row for each preset of each variant."""
    return [
        Row(name, preset, config.PAPER, count_parameters(config), module.TASK)
        for name, module in variants().items()
        for preset, config in module.PRESETS.items()
    ]


def abstract_params(config: ModelConfig) -> PyTree:
    """The shapes and dtypes of a configuration's parameters, without computing any."""
    # Only the vocabulary's size, never its content, matters to the example: one the size of the special tokens is too small.
    small = dataclasses.replace(config, source_vocab_size=len(SPECIAL_TOKENS) + 1, target_vocab_size=len(SPECIAL_TOKENS) + 1)
    source, target = small.example(batch=1, source_len=2, target_len=2)
    # Devices are not asked for, by a key or for their kernels: the hosts of a run may not have found each other yet.
    model = config.build().clone(kernel="xla")
    return jax.eval_shape(lambda: model.init(jax.random.key(0), source, target))["params"]


def count_parameters(config: ModelConfig) -> int:
    """How many numbers the model learns. From the second on layers are alike: of a deep model two are built, and counted."""
    depths = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name.endswith("layers")}

    def count(**layers: int) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(dataclasses.replace(config, **layers))))

    single = dict.fromkeys(depths, 1)
    least = count(**single)
    return least + sum((depth - 1) * (count(**{**single, name: 2}) - least) for name, depth in depths.items() if depth > 1)


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """A configuration as JSON: the variant's file, the class in it, and the fields."""
    return {
        "variant": type(config).__module__.removeprefix("zoo."),
        "config": type(config).__name__,
        "fields": dataclasses.asdict(config),
    }


def config_from_json(data: Any, where: str) -> ModelConfig:
    """The inverse, for any file: only classes that stand in a variant's ``PRESETS`` can result.

    Args:
      data: what JSON gave.
      where: the file, for messages.

    Raises:
      UserError: an unknown variant, class or field, or a value of another type or of no possible size.
    """
    if not isinstance(data, dict) or not {"variant", "config", "fields"} <= set(data):
        raise UserError(f"{where} does not describe a model of this zoo: it needs variant, config and fields")
    module = choose(data["variant"], variants(), f"the variant in {where}")
    classes = {type(preset).__name__: type(preset) for preset in module.PRESETS.values()}
    config = from_fields(choose(data["config"], classes, f"the config in {where}"), data["fields"], where)
    check_sizes(config)
    return config


def check_sizes(config: ModelConfig) -> None:
    """Raises UserError for the first number that no model can have, before anything of that size is made."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if type(value) in (int, float):
            others = (1, 2**20) if type(value) is int else (-1e9, 1e9)
            low, high = next((bounds for ending, bounds in BOUNDS.items() if field.name.endswith(ending)), others)
            if not low <= value <= high:
                raise UserError(f"model.{field.name} is {value}: it must be {low} to {high}")


def choose(name: Any, options: dict[str, Any], what: str) -> Any:
    """``options[name]``, or an error that suggests the nearest name."""
    if isinstance(name, str) and name in options:
        return options[name]
    raise UserError(f"{what} is {name!r}, which is not one of {', '.join(options)}{nearest(str(name), options)}")


def nearest(name: str, options: Iterable[str]) -> str:
    """A suggestion to end a message with, or nothing."""
    close = difflib.get_close_matches(name, list(options), n=1)
    return f": did you mean {close[0]}?" if close else ""


def from_fields(cls: type, fields: Any, where: str) -> Any:
    """A flat dataclass from JSON, with every name and type checked."""
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    if not isinstance(fields, dict):
        raise UserError(f"the fields of {cls.__name__} in {where} are {fields!r}: a JSON object is wanted")
    for name, value in fields.items():
        if name not in names:
            raise UserError(f"{where} has the field {name!r}, which {cls.__name__} lacks{nearest(name, names)}")
        if not fits(value, hints[name]):
            raise UserError(f"the field {name!r} in {where} is {value!r}, which does not fit {hints[name]}")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of the type: int, float, bool, str, a Literal of strings or a tuple of one type.

    >>> fits(3, int), fits(True, int), fits(3, float), fits("a", int)
    (True, False, True, False)
    """
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(fits(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is not None:
        return value in get_args(hint)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
