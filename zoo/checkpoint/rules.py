"""Conversion rules: one table a variant names each parameter in the reference implementation, and serves both directions.

A rule is ``(our path regex, their name, layout)``; the first whose regex matches the whole path wins. A path that no rule
takes, a tensor that no path wants and a shape that does not fit are errors that name both sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from zoo.core import PyTree, UserError, flatten_params, unflatten_params


class Layout(NamedTuple):
    """How one of our arrays lies in theirs: ``out`` gives a tuple with an array for each of their names, ``back`` undoes it."""

    out: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    back: Callable[..., np.ndarray]


SAME = Layout(lambda x: (x,), lambda x: x)
TRANSPOSED = Layout(lambda x: (x.T,), lambda x: x.T)
# One bias of ours is the sum of their two.
SPLIT_SUM = Layout(lambda x: (x, np.zeros_like(x)), lambda x, y: x + y)


class Rule(NamedTuple):
    r"""One row of a table.

    Attributes:
      ours: regex that matches a whole path, ``encoder_(\d+)/kernel``.
      theirs: their name, or names, with ``\1`` for the groups of the regex.
      layout: between the two.
      part: (i, n) if ours is the i-th of n equal blocks along axis 0 of their tensor.
    """

    ours: str
    theirs: str | tuple[str, ...]
    layout: Layout = SAME
    part: tuple[int, int] = (0, 1)


def linear(ours: str, theirs: str) -> tuple[Rule, ...]:
    """A Dense and torch.nn.Linear: the kernel transposed, the bias as it is."""
    return Rule(f"{ours}/kernel", f"{theirs}.weight", TRANSPOSED), Rule(f"{ours}/bias", f"{theirs}.bias")


def packed(ours: Iterable[str], theirs: str) -> tuple[Rule, ...]:
    """Several Dense layers that are row blocks of one torch weight and bias: query, key and value in ``in_proj_weight``."""
    ours = tuple(ours)
    return tuple(
        rule._replace(part=(i, len(ours)))
        for i, path in enumerate(ours)
        for rule in (Rule(f"{path}/kernel", f"{theirs}weight", TRANSPOSED), Rule(f"{path}/bias", f"{theirs}bias"))
    )


def norm(ours: str, theirs: str) -> tuple[Rule, ...]:
    """A LayerNorm on both sides."""
    return Rule(f"{ours}/scale", f"{theirs}.weight"), Rule(f"{ours}/bias", f"{theirs}.bias")


def embedding(ours: str, theirs: str) -> tuple[Rule, ...]:
    """An Embed and torch.nn.Embedding."""
    return (Rule(f"{ours}/embedding", f"{theirs}.weight"),)


def cell(ours: str, theirs: str, suffix: str) -> tuple[Rule, ...]:
    """An Elman or LSTM cell and one layer of torch.nn.RNN or LSTM, which have two biases where one would do."""
    return (
        Rule(f"{ours}/input_kernel", f"{theirs}.weight_ih{suffix}", TRANSPOSED),
        Rule(f"{ours}/recurrent_kernel", f"{theirs}.weight_hh{suffix}", TRANSPOSED),
        Rule(f"{ours}/bias", (f"{theirs}.bias_ih{suffix}", f"{theirs}.bias_hh{suffix}"), SPLIT_SUM),
    )


def find(path: str, rules: Iterable[Rule]) -> tuple[Rule, tuple[str, ...]]:
    """The first rule that matches the path, and their names for it."""
    for rule in rules:
        match = re.fullmatch(rule.ours, path)
        if match:
            theirs = (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs
            return rule, tuple(match.expand(name) for name in theirs)
    raise UserError(f"no conversion rule takes the parameter {path!r}: add one to the variant's RULES")


def to_reference(params: PyTree, rules: Iterable[Rule]) -> dict[str, np.ndarray]:
    """Our parameters under the reference's names and layout."""
    blocks: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in flatten_params(params).items():
        rule, names = find(path, rules)
        for name, array in zip(names, rule.layout.out(np.asarray(leaf)), strict=True):
            blocks.setdefault(name, {})[rule.part[0]] = array
    return {name: np.ascontiguousarray(np.concatenate([b[i] for i in sorted(b)])) for name, b in blocks.items()}


def from_reference(tensors: Mapping[str, np.ndarray], rules: Iterable[Rule], template: PyTree) -> PyTree:
    """The reference's tensors as our parameters.

    Args:
      tensors: name -> array.
      rules: the variant's table.
      template: our parameter tree with anything that has a shape as leaves (``jax.eval_shape`` of an init).

    Returns:
      A tree like the template, with the tensors' dtypes.

    Raises:
      UserError: a tensor is missing, left over, or of another shape.
    """
    flat, used, missing = {}, set(), []
    for path, leaf in flatten_params(template).items():
        rule, names = find(path, rules)
        used.update(names)
        missing += [name for name in names if name not in tensors]
        if missing:
            continue
        array = rule.layout.back(*(block(tensors[name], *rule.part) for name in names))
        if array.shape != tuple(leaf.shape):
            theirs = " + ".join(names)
            raise UserError(f"{theirs} gives {path} the shape {array.shape}, but this model wants {tuple(leaf.shape)}")
        flat[path] = array
    extra = sorted(set(tensors) - used)
    if missing or extra:
        raise UserError(f"the checkpoint is of another model: missing {some(missing)}; not taken {some(extra)}")
    return unflatten_params(flat)


def block(tensor: np.ndarray, i: int, n: int) -> np.ndarray:
    """The i-th of n equal blocks along axis 0."""
    size = tensor.shape[0] // n
    return np.asarray(tensor)[i * size : (i + 1) * size]


def some(names: list[str], most: int = 5) -> str:
    """A few names for an error message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more
