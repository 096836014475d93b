"""A model as two ONNX graphs with the parameters in them, for a search that somebody else writes.

    encoder.onnx     a source's arrays                 -> the memory and an empty cache
    decoder.onnx     token (B, 1), memory and cache    -> logits (B, V) of the next token, and the cache after it

A leaf of the memory or the cache has its path for a name in both files, ``memory.keys.0.key``; what the decoder gives back of
the cache begins with ``next.``. Batch and, of texts, source length are free. The cache has room for ``Decoding.max_len`` tokens
of one hypothesis a sentence. The conversion is jax2onnx's: what it cannot convert it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from zoo.checkpoint.stablehlo import symbols
from zoo.core import PyTree, UserError, first_line
from zoo.predictor import Predictor

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"


def save(predictor: Predictor, directory: Path) -> None:
    """Write both graphs.

    Raises:
      UserError: jax2onnx is not installed, or cannot convert this model.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise UserError("ONNX is written by jax2onnx, which is not installed: pip install 'seq2seq-zoo[onnx]'") from error
    model, variables = predictor.model.clone(kernel="xla"), {"params": predictor.params}
    arrays, source_of = symbols(predictor)

    def encode(*arrays):
        memory = model.apply(variables, source_of(arrays), method="encode")
        return memory, model.apply(variables, memory, predictor.decoding.max_len, method="init_cache")

    shapes = jax.eval_shape(encode, *arrays)
    carried, tree = jax.tree.flatten(shapes)
    names, kept = [*names_of(shapes[0], "memory"), *names_of(shapes[1], "cache")], len(jax.tree.leaves(shapes[0]))

    def decode(token_B1, *leaves):
        outputs, cache = model.apply(variables, token_B1, *tree.unflatten(leaves), method="decode")
        return outputs.logits[:, 0], *jax.tree.leaves(cache)

    token_B1 = jax.ShapeDtypeStruct((arrays[0].shape[0], 1), jnp.int32)
    graphs = {
        ENCODER: (lambda *x: distinct(jax.tree.leaves(encode(*x)), x), arrays, names_of(source_of(arrays)), names),
        DECODER: (decode, [token_B1, *carried], ["token", *names], ["logits", *(f"next.{name}" for name in names[kept:])]),
    }
    for file, (function, inputs, input_names, output_names) in graphs.items():
        try:
            made = jax2onnx.to_onnx(function, inputs, input_names=input_names, output_names=output_names)
        except Exception as error:  # it raises whatever its many converters do
            what = f"{type(model).__name__}'s {file}"
            raise UserError(f"jax2onnx cannot convert {what} ({first_line(error)}): export another format") from error
        (directory / file).write_bytes(made.SerializeToString())


def names_of(tree: PyTree, *before: str) -> list[str]:
    """A name for each leaf: its path.

    >>> names_of(([1, 2],), "memory")
    ['memory.0.0', 'memory.0.1']
    """
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [".".join([*before, jax.tree_util.keystr(path, simple=True, separator=".")]) for path in paths]


def distinct(leaves: Sequence[jax.Array], inputs: Sequence[jax.Array]) -> list[jax.Array]:
    """The leaves, each an array of its own: in a graph none can be an input, or have two names."""
    seen, found = {id(x) for x in inputs}, []
    for leaf in leaves:
        if id(leaf) in seen:
            leaf = leaf & True if leaf.dtype == bool else leaf + 0
        seen.add(id(leaf))
        found.append(leaf)
    return found
