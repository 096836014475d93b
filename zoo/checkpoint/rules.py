"""Conversion rules: one table a variant names each parameter in the reference implementation, and serves both directions.

A rule is ``(our path regex, their name, layout)``; the first whose regex matches the whole path wins. A path that no rule
takes, a tensor that no path wants and a shape that does not fit are errors that name both sides.

A table may also say what else a file of the reference holds: ``Copy``, ``Constant``, ``Renamed`` and ``Unused``. Each of them
is checked when it is read, where there is anything to check, and written again under the name that it had.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from zoo.core import PyTree, UserError, flatten_params, unflatten_params


class Layout(NamedTuple):
    """How one of our arrays lies in theirs: ``out`` gives a tuple with an array for each of their names, ``back`` undoes it."""

    out: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    back: Callable[..., np.ndarray]


SAME = Layout(lambda x: (x,), lambda x: x)
TRANSPOSED = Layout(lambda x: (x.T,), lambda x: x.T)
ROW = Layout(lambda x: (x[None],), lambda x: x[0])
# One bias of ours is the sum of their two.
SPLIT_SUM = Layout(lambda x: (x, np.zeros_like(x)), lambda x, y: x + y)


class Rule(NamedTuple):
    r"""One row of a table.

    Attributes:
      ours: regex that matches a whole path, ``encoder_(\d+)/kernel``.
      theirs: their name, or names, with ``\1`` for the groups of the regex.
      layout: between the two.
      part: (i, n) if ours is the i-th of n equal blocks of their tensor.
      axis: along which those blocks stand side by side.
    """

    ours: str
    theirs: str | tuple[str, ...]
    layout: Layout = SAME
    part: tuple[int, int] = (0, 1)
    axis: int = 0


class Copy(NamedTuple):
    """A tensor of theirs that repeats another one: the same bytes, or it is an error. It may be missing, or be the only one.

    Attributes:
      theirs: regex that matches a whole name.
      of: the name that it repeats, with the groups of the regex.
    """

    theirs: str
    of: str


class Constant(NamedTuple):
    """A tensor of theirs that is no parameter: a buffer, such as positions, that follows from its shape. It may be missing.

    Attributes:
      theirs: regex that matches a whole name.
      value: shape -> array; what a file holds must agree within half precision.
    """

    theirs: str
    value: Callable[[tuple[int, ...]], np.ndarray]


class Renamed(NamedTuple):
    """A name that older files of theirs use for one in the table, which is what the other rules know.

    Attributes:
      old: regex that matches a whole name.
      new: the name in the table, with the groups of the regex.
    """

    old: str
    new: str


class Unused(NamedTuple):
    """A small tensor in files of theirs that no code reads. It may be missing; whoever reads the others keeps it.

    Attributes:
      theirs: regex that matches a whole name.
    """

    theirs: str


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


def projections(ours: str, theirs: str) -> tuple[Rule, ...]:
    """The four of a MultiHeadAttention, by the names that they have in fairseq and in much of transformers."""
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    return tuple(rule for a, b in names.items() for rule in linear(f"{ours}/{a}", f"{theirs}.{b}"))


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


def find(path: str, rules: Iterable) -> tuple[Rule, tuple[str, ...]]:
    """The first rule that matches the path, and their names for it."""
    for rule in rules:
        if isinstance(rule, Rule) and (match := re.fullmatch(rule.ours, path)):
            theirs = (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs
            return rule, tuple(match.expand(name) for name in theirs)
    raise UserError(f"no conversion rule takes the parameter {path!r}: add one to the variant's RULES")


def expand(name: str, rules: Iterable, kind: type) -> str | None:
    """What the first ``Copy`` or ``Renamed`` that matches makes of a name of theirs."""
    matches = ((re.fullmatch(rule[0], name), rule[1]) for rule in rules if isinstance(rule, kind))
    return next((match.expand(new) for match, new in matches if match), None)


def constant(name: str, rules: Iterable) -> Constant | None:
    """The ``Constant`` that a name of theirs is."""
    return next((rule for rule in rules if isinstance(rule, Constant) and re.fullmatch(rule.theirs, name)), None)


def is_unused(name: str, rules: Iterable) -> bool:
    """Whether a name of theirs is an ``Unused``."""
    return any(isinstance(rule, Unused) and re.fullmatch(rule.theirs, name) for rule in rules)


def to_reference(params: PyTree, rules: Iterable) -> dict[str, np.ndarray]:
    """Our parameters under the reference's names and layout."""
    return {name: make() for name, make in makers(params, rules).items()}


def makers(params: PyTree, rules: Iterable, like: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Callable]:
    """The reference's tensors, each as a function that makes it.

    Args:
      params: our parameters.
      rules: the variant's table.
      like: name -> shape of the file that they came from, but for its unused ones; its copies, constants and names come back.
        None for the table's own.

    Raises:
      UserError: that file holds a tensor that nothing makes.
    """
    blocks: dict[str, dict[int, tuple]] = {}
    for path, leaf in flatten_params(params).items():
        rule, names = find(path, rules)
        for i, name in enumerate(names):
            blocks.setdefault(name, {})[rule.part[0]] = rule, leaf, i

    def make(parts):
        arrays = [rule.layout.out(np.asarray(leaf))[i] for _, (rule, leaf, i) in sorted(parts.items())]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=parts[0][0].axis)

    made = {name: functools.partial(make, parts) for name, parts in blocks.items()}
    if like is None:
        return made
    result = {}
    for name, shape in like.items():
        known = expand(name, rules, Renamed) or name
        rule = constant(known, rules)
        found = made.get(known) or made.get(expand(known, rules, Copy))
        if found is None and rule is None:
            raise UserError(f"the tensor {name} of the original checkpoint has no rule any more: export without its names")
        result[name] = found or functools.partial(rule.value, tuple(shape))
    return result


def from_reference(
    tensors: Mapping[str, np.ndarray],
    rules: Iterable,
    template: PyTree,
    put: Callable[[str, np.ndarray, Any], Any] = lambda path, array, leaf: array,
) -> PyTree:
    """The reference's tensors as our parameters.

    Args:
      tensors: name -> array; each is asked for when it is its turn, the largest first.
      rules: the variant's table.
      template: our parameter tree with anything that has a shape as leaves (``jax.eval_shape`` of an init).
      put: what becomes of each array, given our path and the template's leaf.

    Returns:
      A tree like the template, with the tensors' dtypes.

    Raises:
      UserError: a tensor is missing, left over, of another shape, or not what a ``Copy`` or ``Constant`` says.
    """
    wanted = flatten_params(template)
    found = {path: find(path, rules) for path in wanted}
    where = places(list(tensors), {name for _, names in found.values() for name in names}, rules)
    flat = {}
    for path, leaf in sorted(wanted.items(), key=lambda item: -math.prod(item[1].shape)):
        rule, names = found[path]
        array = rule.layout.back(*(block(tensors[where[name]], *rule.part, rule.axis) for name in names))
        if array.shape != tuple(leaf.shape):
            theirs = " + ".join(names)
            raise UserError(f"{theirs} gives {path} the shape {array.shape}, but this model wants {tuple(leaf.shape)}")
        flat[path] = put(path, array, leaf)
        del array  # what it was read from, before the next
    for name in tensors:
        check_extra(name, tensors, where, rules)
    return unflatten_params({path: flat[path] for path in wanted})


def places(names: list[str], wanted: set[str], rules: Iterable) -> dict[str, str]:
    """Where each wanted tensor stands: their name in the table -> the name in the file.

    Raises:
      UserError: one is missing, or one is left over that is no ``Copy``, ``Constant`` or ``Unused``.
    """
    names = [name for name in names if not is_unused(name, rules)]
    known = {expand(name, rules, Renamed) or name: name for name in names}
    if len(known) != len(names):
        twice = next(name for name in names if name not in known.values())
        raise UserError(f"the checkpoint holds {twice} a second time under another name: remove one of them")
    copies = {expand(name, rules, Copy): name for name in known if name not in wanted and expand(name, rules, Copy)}
    where = {name: known.get(name) or known.get(copies.get(name, "")) for name in wanted}
    missing = sorted(name for name, place in where.items() if place is None)
    extra = sorted(n for n in known if n not in wanted and expand(n, rules, Copy) not in wanted and not constant(n, rules))
    if missing or extra:
        raise UserError(f"the checkpoint is of another model: missing {some(missing)}; not taken {some(extra)}")
    return where


def check_extra(name: str, tensors: Mapping[str, np.ndarray], where: dict[str, str], rules: Iterable) -> None:
    """Raises UserError if a copy differs from its original, or a constant from its value."""
    known = expand(name, rules, Renamed) or name
    if name in where.values() or is_unused(name, rules):
        return
    if original := expand(known, rules, Copy):
        first, second = tensors[where[original]], tensors[name]
        if first.dtype != second.dtype or first.shape != second.shape or not same_bytes(first, second):
            raise UserError(f"{name} differs from {where[original]}, which this model ties: it is a model of another kind")
        return
    array, value = tensors[name], constant(known, rules).value(tensors[name].shape)
    if array.shape != value.shape or not np.allclose(array.astype(np.float64), value.astype(np.float64), atol=1e-2):
        raise UserError(f"{name} is not what this model computes in its place: it is a model of another kind")


def same_bytes(first: np.ndarray, second: np.ndarray, piece: int = 1 << 24) -> bool:
    """Whether two arrays of one shape and dtype are equal to the bit, read a piece at a time."""
    first, second = (x.reshape(-1).view(np.uint8) for x in (first, second))
    return all(np.array_equal(first[i : i + piece], second[i : i + piece]) for i in range(0, first.size, piece))


def block(tensor: np.ndarray, i: int, n: int, axis: int = 0) -> np.ndarray:
    """The i-th of n equal blocks along an axis; all of it where there are none, which then has the wrong shape."""
    if n == 1 or axis >= tensor.ndim or tensor.shape[axis] % n:
        return tensor
    size = tensor.shape[axis] // n
    return tensor[(slice(None),) * axis + (slice(i * size, (i + 1) * size),)]


def some(names: list[str], most: int = 5) -> str:
    """A few names for an error message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more
