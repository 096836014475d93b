"""Embeddings that start from word vectors which were learned before (``Experiment.init_embeddings``)."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from zoo.core import PyTree, UserError, flatten_params, unflatten_params
from zoo.text import Tokenizer
from zoo.vectors import WordVectors

# Tables of token embeddings, in every variant; one that serves both sides has no side in its name.
TABLES = re.compile(r"(?:.*/)?(?:(source|target)_)?embedding/embedding")


def fill(params: PyTree, vectors: WordVectors, sides: dict[str, Tokenizer], where: str) -> tuple[PyTree, list[str]]:
    """Parameters whose embeddings of known tokens are their vectors.

    All vectors are scaled by one number, so that their root mean square is that of the table's random start: a model expects
    embeddings of a certain size, and vectors come in any.

    Args:
      params: random ones, on their devices, where they stay.
      vectors: word -> vector, by the same spelling as the tokens.
      sides: "source" and "target", the tokenizers.
      where: the vectors' file or directory, for messages.

    Returns:
      The parameters, and a line for each table: how many tokens were known.

    Raises:
      UserError: the model has no such table, or one of another width, or no token is known.
    """
    flat, lines, known = flatten_params(params), [], 0
    for path, table in flat.items():
        match = TABLES.fullmatch(path)
        if not match:
            continue
        if table.shape[1] != vectors.vectors.shape[1]:
            raise UserError(
                f"init_embeddings is {where}, whose vectors have {vectors.vectors.shape[1]} numbers, but {path} of the model "
                f"has {table.shape[1]}: make the model that wide, or train vectors of its width"
            )
        tokens = tokens_of(sides[match[1] or "target"])
        ids_n = np.array([i for i, token in enumerate(tokens) if token in vectors], np.int32)
        known += len(ids_n)
        lines.append(f"{path}: {len(ids_n):,} of {len(tokens):,} tokens start from {where}")
        if len(ids_n):
            rows_nD = vectors.vectors[[vectors.place(tokens[i]) for i in ids_n]]
            flat[path] = jax.jit(with_rows, out_shardings=table.sharding)(table, ids_n, rows_nD)
    if not known:
        what = "none of the tokens has a vector there" if lines else "the model has no table of token embeddings"
        raise UserError(
            f"init_embeddings is {where}, but {what}: check that both have the same kind of tokens, or leave it out"
        )
    return unflatten_params(flat), lines


def tokens_of(tokenizer: Tokenizer) -> list[str]:
    """Every token by its id. Raises UserError for the tokenizer of a pretrained model."""
    if not isinstance(tokenizer, Tokenizer):
        raise UserError("init_embeddings is for tokenizers that the run learns itself: leave it out beside init_from")
    return tokenizer.tokens()


def with_rows(table_VD: jax.Array, ids_n: jax.Array, rows_nD: jax.Array) -> jax.Array:
    """The table with these rows, scaled to its root mean square."""
    scale = jnp.sqrt(jnp.mean(table_VD**2) / jnp.maximum(jnp.mean(rows_nD**2), 1e-30))
    return table_VD.at[ids_n].set(scale * rows_nD)
