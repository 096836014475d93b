"""Model FLOPs utilisation: the arithmetic that a model needs, beside what its devices could do.

The count is the model's, not the machine's (Chowdhery et al. 2022, appendix B): matrix products and convolutions, whatever is
computed twice to save memory. A causal model's attention counts in full.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from zoo.core import PyTree, Seq2Seq
from zoo.variants import abstract_params


class Peak(NamedTuple):
    """What one of JAX's devices can do, in FLOPs a second, by the precision of the operands that a run asks for."""

    bfloat16: float
    float32: float


# Dense products; where a data sheet gives them with sparsity, half of that. By default XLA takes float32 operands as TF32 on an
# NVIDIA GPU and as bfloat16 on a TPU.
# NVIDIA: the data sheets "A100 Tensor Core GPU" (2021), "H100 Tensor Core GPU" (2023) and "H200 Tensor Core GPU" (2024).
# Google: "Peak compute per chip" of cloud.google.com/tpu/docs/v3, v4, v5e, v5p and v6e; a v3 chip is two of JAX's devices.
A100 = Peak(312e12, 156e12)
H100_SXM = Peak(989.5e12, 494.7e12)
H100_NVL = Peak(835.5e12, 417.5e12)
V5E, V5P, V6E = Peak(197e12, 197e12), Peak(459e12, 459e12), Peak(918e12, 918e12)
PEAKS = {
    "NVIDIA A100-PCIE-40GB": A100,
    "NVIDIA A100-SXM4-40GB": A100,
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA A100 80GB PCIe": A100,
    "NVIDIA H100 PCIe": Peak(756.5e12, 378e12),
    "NVIDIA H100 NVL": H100_NVL,
    "NVIDIA H100 80GB HBM3": H100_SXM,
    "NVIDIA H200": H100_SXM,
    "NVIDIA H200 NVL": H100_NVL,
    "TPU v3": Peak(61.5e12, 61.5e12),
    "TPU v4": Peak(275e12, 275e12),
    "TPU v5 lite": V5E,
    "TPU v5e": V5E,
    "TPU v5": V5P,
    "TPU v5p": V5P,
    "TPU v6 lite": V6E,
    "TPU v6e": V6E,
}


def peak_flops(device_kind: str, precision: str) -> float | None:
    """FLOPs a second of a device, by ``jax.Device.device_kind`` and ``Compute.precision``; None where no data sheet is known.

    >>> peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") / 1e12, peak_flops("cpu", "float32")
    (989.5, None)
    """
    peak = PEAKS.get(device_kind)
    return None if peak is None else getattr(peak, precision)


def utilisation(flops: float, seconds: float, devices: Sequence[jax.Device], precision: str) -> float | None:
    """The share of these devices' peak that so many FLOPs in so many seconds are; None where a peak is not known."""
    peaks = [peak_flops(device.device_kind, precision) for device in devices]
    return None if None in peaks else flops / (seconds * sum(peaks))


def training_flops(model: Seq2Seq) -> Callable[[PyTree, PyTree], int]:
    """``flops(source, target) -> int``: those of one training step, the backward pass counted as twice the forward one.

    Source and target are a batch's, or have its shapes; padding counts too. The model is traced once for each shape.
    """
    params = abstract_params(model.config)

    @functools.cache
    def of_shapes(leaves: tuple, tree) -> int:
        source, target = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
        forward = jax.make_jaxpr(lambda params, source, target: model.apply({"params": params}, source, target).logits)
        return 3 * count(forward(params, source, target).jaxpr)

    def flops(source: PyTree, target: PyTree) -> int:
        leaves, tree = jax.tree.flatten((source, target))
        return of_shapes(tuple((leaf.shape, leaf.dtype) for leaf in leaves), tree)

    return flops


def count(jaxpr: Jaxpr) -> int:
    """FLOPs of a program's products: a scan's body times its length, the dearer branch of a condition.

    Raises:
      ValueError: products in a while loop, whose turns nobody knows (and which has no gradient).
    """
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * kernel.size // outputs
        else:
            inner = [count(program) for program in programs(params)]
            if name == "while" and any(inner):
                raise ValueError("a while loop computes products: their number is not known before it runs")
            turns = params["length"] if name == "scan" else 1
            total += max(inner) if name == "cond" else turns * sum(inner)
    return total


def programs(params: dict) -> Iterator[Jaxpr]:
    """The programs that an equation calls."""
    for leaf in jax.tree.leaves(list(params.values()), is_leaf=lambda x: isinstance(x, (Jaxpr, ClosedJaxpr))):
        if isinstance(leaf, (Jaxpr, ClosedJaxpr)):
            yield leaf.jaxpr if isinstance(leaf, ClosedJaxpr) else leaf
