"""Recurrent cells as plain functions, and the scan that runs them over padded sequences.

A cell is ``step(carry, gates_BG, weights) -> (carry, h_BD)``. The input's share of the gates does not depend on time, so it
is computed for the whole sequence in one product (``input_gates``) and only the recurrent product is left in the scan.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import orthogonal, xavier_uniform

from zoo.nn.linear import over_rows

Carry = jax.Array | tuple[jax.Array, jax.Array]


class Weights(NamedTuple):
    """A cell's parameters: gates = x @ input + bias + recurrent(h), with the gates side by side on the last axis.

    Attributes:
      input: (D_in, G), recurrent: (D, G), bias: (G,).
      recurrent_bias: (1, D) or (B, D) for the cuDNN GRU alone, else None.
    """

    input: jax.Array
    recurrent: jax.Array
    bias: jax.Array
    recurrent_bias: jax.Array | None = None


def elman_step(h_BD: jax.Array, gates_BG: jax.Array, weights: Weights) -> tuple[jax.Array, jax.Array]:
    """Simple recurrent network (Elman 1990): h' = tanh(W x + U h + b)."""
    h_BD = jnp.tanh(gates_BG + h_BD @ weights.recurrent)
    return h_BD, h_BD


def lstm_step(carry: tuple[jax.Array, jax.Array], gates_BG: jax.Array, weights: Weights) -> tuple[Carry, jax.Array]:
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000); carry is (c, h).

    Gates in the order input, forget, candidate, output: c' = f c + i g, h' = o tanh(c'). c is a sum over all of time, to
    which bfloat16's eight bits could not add what is small: it stays float32.
    """
    c_BD, h_BD = carry
    i, f, g, o = jnp.split(gates_BG + h_BD @ weights.recurrent, 4, axis=-1)
    c_BD = nn.sigmoid(f) * c_BD + nn.sigmoid(i) * jnp.tanh(g)
    h_BD = nn.sigmoid(o) * jnp.tanh(c_BD).astype(o.dtype)
    return (c_BD, h_BD), h_BD


def gru_step(h_BD: jax.Array, gates_BG: jax.Array, weights: Weights) -> tuple[jax.Array, jax.Array]:
    """Gated recurrent unit as published (Cho et al. 2014, equations 5 to 8): the reset gate acts before the product.

    Gates in the order reset, update, candidate: h~ = tanh(W x + U (r h)), h' = z h + (1 - z) h~.
    """
    D = h_BD.shape[-1]
    r, z = jnp.split(nn.sigmoid(gates_BG[:, : 2 * D] + h_BD @ weights.recurrent[:, : 2 * D]), 2, axis=-1)
    candidate_BD = jnp.tanh(gates_BG[:, 2 * D :] + (r * h_BD) @ weights.recurrent[:, 2 * D :])
    h_BD = z * h_BD + (1 - z) * candidate_BD
    return h_BD, h_BD


def cudnn_gru_step(h_BD: jax.Array, gates_BG: jax.Array, weights: Weights) -> tuple[jax.Array, jax.Array]:
    """The GRU of cuDNN and of torch.nn.GRU: the reset gate acts after the product, h~ = tanh(W x + r (U h + b_h))."""
    D = h_BD.shape[-1]
    recurrent_BG = h_BD @ weights.recurrent
    r, z = jnp.split(nn.sigmoid(gates_BG[:, : 2 * D] + recurrent_BG[:, : 2 * D]), 2, axis=-1)
    candidate_BD = jnp.tanh(gates_BG[:, 2 * D :] + r * (recurrent_BG[:, 2 * D :] + weights.recurrent_bias))
    h_BD = z * h_BD + (1 - z) * candidate_BD
    return h_BD, h_BD


class CellKind(NamedTuple):
    """One row of ``CELLS``: how many gates a cell has, its step, and whether its carry is (c, h) rather than h."""

    gates: int
    step: Callable
    has_memory: bool = False


CELLS = {
    "elman": CellKind(1, elman_step),
    "lstm": CellKind(4, lstm_step, has_memory=True),
    "gru": CellKind(3, gru_step),
    "cudnn_gru": CellKind(3, cudnn_gru_step),
}


def per_gate(init: Callable, gates: int) -> Callable:
    """Initialise each gate's block as a matrix of its own: an orthogonal (D, 4 D) matrix would not be orthogonal per gate."""

    def initialise(key, shape, dtype=jnp.float32):
        block = (shape[0], shape[1] // gates)
        return jnp.concatenate([init(k, block, dtype) for k in jax.random.split(key, gates)], axis=-1)

    return initialise


def forget_open(key, shape, dtype=jnp.float32):
    """An LSTM's bias: zero, but one for the forget gate, so that gradients flow from the start (Jozefowicz et al. 2015)."""
    del key
    return jnp.zeros(shape, dtype).reshape(4, -1).at[1].set(1.0).reshape(shape)


class Cell(nn.Module):
    """A recurrent cell's parameters: ``weights`` for a plain step, or call it to run over a sequence.

    Attributes:
      kind: a key of ``CELLS``.
      inputs: width of x; features: width D of the state.
      remat: keep x alone of a sequence for the gradient, and run over it again.
      input_init, recurrent_init: of one gate's block.
    """

    kind: str
    inputs: int
    features: int
    remat: bool = False
    input_init: Callable = xavier_uniform()
    recurrent_init: Callable = orthogonal()

    def setup(self):
        gates = CELLS[self.kind].gates
        G = gates * self.features
        self.input_kernel = self.param("input_kernel", per_gate(self.input_init, gates), (self.inputs, G))
        self.recurrent_kernel = self.param("recurrent_kernel", per_gate(self.recurrent_init, gates), (self.features, G))
        self.bias = self.param("bias", forget_open if self.kind == "lstm" else nn.initializers.zeros, (G,))
        if self.kind == "cudnn_gru":
            self.recurrent_bias = self.param("recurrent_bias", nn.initializers.zeros, (self.features,))

    @property
    def weights(self) -> Weights:
        """The parameters as a tuple, to be read outside of any scan."""
        recurrent_bias = self.recurrent_bias[None] if self.kind == "cudnn_gru" else None
        return Weights(self.input_kernel, self.recurrent_kernel, self.bias, recurrent_bias)

    def __call__(
        self, x_BND: jax.Array, mask_BN: jax.Array | None = None, carry: Carry | None = None, reverse: bool = False
    ) -> tuple[Carry, jax.Array]:
        """Run over (B, N, D_in): the final carry, and h at each position (B, N, D), zero where masked."""
        carry = zero_carry(self.kind, x_BND.shape[0], self.features, x_BND.dtype) if carry is None else carry

        def run(x_BND, weights, carry):
            return scan_cell(CELLS[self.kind].step, weights, input_gates(x_BND, weights), carry, mask_BN, reverse)

        return (jax.checkpoint(run) if self.remat else run)(x_BND, self.weights, carry)


def zero_carry(kind: str, batch: int, features: int, dtype=jnp.float32) -> Carry:
    """The state before the first input: h, or (c, h) for an LSTM, of shape (batch, features); c is float32 always."""
    h_BD = jnp.zeros((batch, features), dtype)
    return (jnp.zeros((batch, features)), h_BD) if CELLS[kind].has_memory else h_BD


def input_gates(x_BND: jax.Array, weights: Weights) -> jax.Array:
    """The input's share of the gates, for the whole sequence in one product: (B, N, G)."""
    return over_rows(x_BND, weights.input) + jnp.expand_dims(weights.bias, (0, 1))


def keep_where(mask_B: jax.Array, new: Carry, old: Carry) -> Carry:
    """``new`` for the rows that read a real token, ``old`` for the others: padding never changes a state."""
    return jax.tree.map(lambda n, o: jnp.where(mask_B[:, None], n, o), new, old)


def scan_cell(
    step: Callable,
    weights: Weights,
    gates_BNG: jax.Array,
    carry: Carry,
    mask_BN: jax.Array | None = None,
    reverse: bool = False,
) -> tuple[Carry, jax.Array]:
    """Run a cell over time, skipping masked positions whichever side they stand on.

    Args:
      step: one of the step functions above.
      weights: the cell's parameters.
      gates_BNG: the input's share of the gates.
      carry: the state before the first step.
      mask_BN: bool, True where a token is real; None where all are.
      reverse: read from the last position to the first; outputs stay at their positions.

    Returns:
      The carry after the last real token, and h (B, N, D), zero where masked.
    """

    time_major = (jnp.swapaxes(gates_BNG, 0, 1), None if mask_BN is None else mask_BN.T)
    if step in (elman_step, lstm_step):
        carry, h_NBD = steps_of_sums(step, reverse, weights.recurrent, *time_major, carry)
    else:
        carry, (h_NBD, _) = steps(step, reverse, weights, *time_major, carry)
    # Not constrained over a mesh: XLA's partitioner would give an encoder another gradient where the decoder feeds its input.
    return carry, jnp.swapaxes(h_NBD, 0, 1)


def steps(
    step: Callable, reverse: bool, weights: Weights, gates_NBG: jax.Array, mask_NB: jax.Array | None, carry: Carry
) -> tuple[Carry, tuple[jax.Array, jax.Array]]:
    """The scan itself, time first: the last carry, h after each step (zero where masked) and h before it."""

    def body(carry, inputs):
        gates_BG, mask_B = inputs
        new, h_BD = step(carry, gates_BG, weights)
        if mask_B is None:
            return new, (h_BD, jax.tree.leaves(carry)[-1])
        return keep_where(mask_B, new, carry), (jnp.where(mask_B[:, None], h_BD, 0), jax.tree.leaves(carry)[-1])

    return jax.lax.scan(body, carry, (gates_NBG, mask_NB), reverse=reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def steps_of_sums(step, reverse, recurrent_DG, gates_NBG, mask_NB, carry) -> tuple[Carry, jax.Array]:
    """``steps`` of a cell whose gates read gates + h @ recurrent and nothing else of either, differentiated faster.

    The gradient of ``recurrent`` is then that of the gates times the states before them, one product over all of time. Left
    to itself the backward scan would make a thin product, and read and write a sum of the matrix's size, at every step.
    """
    carry, (h_NBD, _) = steps(step, reverse, Weights(None, recurrent_DG, None), gates_NBG, mask_NB, carry)
    return carry, h_NBD


def steps_of_sums_forward(step, reverse, recurrent_DG, gates_NBG, mask_NB, carry):
    def run(gates_NBG, carry):
        carry, (h_NBD, before_NBD) = steps(step, reverse, Weights(None, recurrent_DG, None), gates_NBG, mask_NB, carry)
        return (carry, h_NBD), before_NBD

    out, pull_back, before_NBD = jax.vjp(run, gates_NBG, carry, has_aux=True)
    return out, (pull_back, before_NBD)


def steps_of_sums_backward(step, reverse, saved, gradient):
    pull_back, before_NBD = saved
    gates_NBG, carry = pull_back(gradient)
    rows = lambda x_NBX: x_NBX.reshape(-1, x_NBX.shape[-1])  # noqa: E731
    return rows(before_NBD).T @ rows(gates_NBG), gates_NBG, None, carry


steps_of_sums.defvjp(steps_of_sums_forward, steps_of_sums_backward)


def maxout(x_BNF: jax.Array, pieces: int = 2) -> jax.Array:
    """Maxout (Goodfellow et al. 2013): the greatest of each run of ``pieces`` neighbouring units, (B, N, F / pieces).

    >>> maxout(jnp.array([[[1.0, 3.0, 2.0, 0.0]]])).tolist()
    [[[3.0, 2.0]]]
    """
    return x_BNF.reshape(*x_BNF.shape[:-1], -1, pieces).max(axis=-1)
