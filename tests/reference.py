"""The directories in golden/ that hold a tiny pretrained model, with what the reference library computes of it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from stepwise import step_by_step

import zoo
from zoo.checkpoint.tensors import Tensors

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE, GRADIENT = 1e-5, 1e-4  # absolute, in float32


def names(file: str) -> list[str]:
    """The directories that hold a file of this name."""
    return sorted(path.parent.name for path in GOLDEN.glob(f"*/{file}"))


def read(name: str, file: str) -> SimpleNamespace:
    """A model as ``zoo.load`` gives it, and the golden arrays."""
    predictor = zoo.load(GOLDEN / name)
    with np.load(GOLDEN / name / file, allow_pickle=False) as arrays:
        golden = dict(arrays)
    return SimpleNamespace(predictor=predictor, model=predictor.model, params=predictor.params, golden=golden)


@functools.cache
def compiled(model: zoo.Seq2Seq, decodes: bool = True):
    """(params, source, target) -> logits, each layer's output, the gradient of the reference's loss, logits step by step.

    That loss is the mean of the sentences' sums; of a model that decodes nothing, which has no steps either, their sum.
    """

    def loss(params, source, target):
        outputs, seen = model.apply({"params": params}, source, target, capture_intermediates=True, mutable=["intermediates"])
        log_p_BTV = jax.nn.log_softmax(outputs.logits)
        log_p_BT = jnp.take_along_axis(log_p_BTV, target.ids[..., None], axis=-1)[..., 0]
        hidden = {name: layer["__call__"][0][0] for name, layer in seen["intermediates"].items() if name[-1].isdigit()}
        nll_B = -(log_p_BT * target.mask).sum(axis=1)
        return nll_B.mean() if decodes else nll_B.sum(), (outputs.logits, hidden)

    @jax.jit
    def run(params, source, target):
        (_, (logits, hidden)), gradient = jax.value_and_grad(loss, has_aux=True)(params, source, target)
        return logits, hidden, gradient, step_by_step(model, params, source, target) if decodes else None

    return run


def part(golden: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin so, by the rest of their names."""
    return {key.removeprefix(prefix): x for key, x in golden.items() if key.startswith(prefix)}


def close(actual, desired, what: str, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == desired.shape, what
    assert np.abs(np.asarray(actual) - desired).max() <= tolerance, what


def close_gradients(ours: dict[str, np.ndarray], golden: dict[str, np.ndarray]) -> set[str]:
    """Those of the golden file, by the reference's names, all of which say something; returns the names that it lacks."""
    wanted = part(golden, "grad:")
    for key, x in wanted.items():
        assert np.abs(x).max() > 10 * GRADIENT or np.abs(x).max() < 1e-12, f"the golden gradient of {key} says little"
        close(ours[key], x, f"gradient of {key}", GRADIENT)
    return set(ours) - set(wanted)


def rolled(x: np.ndarray, mask_BN: np.ndarray) -> np.ndarray:
    """Right-padded rows with their padding on the left."""
    return np.stack([np.roll(row, (~mask).sum(), axis=0) for row, mask in zip(x, mask_BN, strict=True)])


def same_directory(first: Path, second: Path) -> None:
    """The same tensors to the byte under the same names, the same settings, the same tokenizer files."""
    ours, theirs = Tensors.open(first), Tensors.open(second)
    assert set(ours) == set(theirs)
    for name in theirs:
        assert (ours[name].dtype, ours[name].shape) == (theirs[name].dtype, theirs[name].shape), name
        assert ours[name].tobytes() == theirs[name].tobytes(), name
    for path in second.iterdir():
        if path.suffix not in (".safetensors", ".npz"):
            mine = first / path.name
            assert mine.is_file(), path.name
            if path.name in ("config.json", "generation_config.json"):
                assert json.loads(mine.read_text(encoding="utf-8")) == json.loads(path.read_text(encoding="utf-8"))
            else:
                assert mine.read_bytes() == path.read_bytes(), path.name
