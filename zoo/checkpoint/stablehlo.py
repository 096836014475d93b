"""A model's whole generation as one file that jax alone runs: StableHLO with the parameters in it, by ``jax.export``.

    from jax import export

    generate = export.deserialize(open("model.stablehlo", "rb").read()).call
    generate(ids, mask)["ids"]

The arguments are the arrays of a source in the order of its fields, for texts ``ids`` (B, S) int32 and ``mask`` (B, S) bool of
any B and S. The result is a dict: ``ids`` (B, T) int32, ``log_probs`` (B, T) float32, ``score`` (B,) float32 and ``length``
(B,) int32, with an axis for several outputs of a sentence after the first. The program is for CPU, CUDA and TPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from zoo.core import Tokens, UserError
from zoo.generate import generate
from zoo.predictor import Predictor

PLATFORMS = ("cpu", "cuda", "tpu")
LARGEST = 2**31 - 2**24  # bytes of a file: its offsets have 31 bits


def save(predictor: Predictor, path: Path) -> None:
    """Write the file: generation by the predictor's own ``Decoding``, which is greedy or beam search.

    Raises:
      UserError: the decoding samples, the parameters are too many for one file, or a package is missing.
    """
    decoding, model = predictor.decoding, predictor.model.clone(kernel="xla")
    if decoding.sample or decoding.risk != "none":
        raise UserError("the search samples, but a file of StableHLO has no random numbers: export without sample and risk")
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(predictor.params))
    if size > LARGEST:
        raise UserError(f"the parameters have {size} bytes, but a file of StableHLO at most {LARGEST}: export another format")
    leaves, source_of = symbols(predictor)

    @jax.jit
    def run(*leaves):
        found = generate(
            model,
            predictor.params,
            source_of(leaves),
            max_len=decoding.max_len,
            search=decoding.search(None),
            rules=decoding.rules(model.config.target_vocab_size),
        )
        return {"ids": found.ids, "log_probs": found.log_probs, "score": found.score, "length": found.length}

    exported = jax.export.export(run, platforms=PLATFORMS)(*leaves)
    try:
        path.write_bytes(exported.serialize())
    except ImportError as error:
        raise UserError("jax writes this format by flatbuffers, which is not installed: pip install flatbuffers") from error


def symbols(predictor: Predictor) -> tuple[list[jax.ShapeDtypeStruct], Any]:
    """A source's arrays with symbols for the batch and, in texts, the length; and what makes the source of such arrays."""
    batch, length = jax.export.symbolic_shape("batch, length")
    source, _ = jax.eval_shape(lambda: predictor.model.config.example())

    def symbolic(node):
        fixed = 2 if isinstance(node, Tokens) else 1
        sizes = (batch, length)[:fixed]
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*sizes, *x.shape[fixed:]), x.dtype), node)

    source = jax.tree.map(symbolic, source, is_leaf=lambda node: isinstance(node, Tokens))
    leaves, tree = jax.tree.flatten(source)
    return leaves, tree.unflatten
