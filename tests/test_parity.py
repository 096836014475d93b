"""Every variant against the same model in PyTorch: logits, attention, gradients, decoding step by step, padding.

The golden files come from golden/make_golden.py. The recurrent ones read each sentence alone, unpadded.
"""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stepwise import step_by_step

from zoo import rnn, rnn_attention, transformer
from zoo.checkpoint import rules
from zoo.core import Tokens
from zoo.nn.recurrent import Cell

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-5  # absolute, in float32
EMBED, HIDDEN = 10, 12
RNN = {"embed_dim": EMBED, "hidden_dim": HIDDEN}
LUONG = RNN | {"num_layers": 2, "window": 2, "dropout": 0.0}
TRANSFORMER = {"d_model": 16, "d_ff": 24, "num_heads": 4, "num_layers": 2, "dropout": 0.0, "max_len": 9}


def luong(**fields) -> rnn_attention.LuongConfig:
    return rnn_attention.LuongConfig(19, 21, **{**LUONG, **fields})


MODELS = {
    "elman": rnn.ElmanConfig(19, 21, **RNN),
    "sutskever": rnn.SutskeverConfig(19, 21, **RNN, num_layers=2, reverse_source=True),
    "cho": rnn.ChoConfig(19, 21, **RNN, maxout_dim=7),
    "bahdanau": rnn_attention.BahdanauConfig(19, 21, **RNN, attention_dim=9, maxout_dim=7),
    "luong_global_dot": luong(score="dot", input_feeding=False),
    "luong_global_general_feeding": luong(score="general", input_feeding=True, reverse_source=True),
    "luong_global_concat_feeding": luong(score="concat", input_feeding=True, num_layers=1),
    "luong_local_m_general": luong(score="general", alignment="local-m", input_feeding=False, window=1, num_layers=1),
    "luong_local_p_concat_feeding": luong(score="concat", alignment="local-p", input_feeding=True, num_layers=1),
    "transformer_post_sinusoidal_all": transformer.TransformerConfig(21, 21, **TRANSFORMER),
    "transformer_pre_sinusoidal_target": transformer.TransformerConfig(
        19, 21, **TRANSFORMER, norm="pre", share_embeddings="target"
    ),
    "transformer_pre_learned_none": transformer.TransformerConfig(
        19, 21, **TRANSFORMER | {"num_layers": 1}, norm="pre", positions="learned", share_embeddings="none"
    ),
}
CELLS = {"cell_elman": "elman", "cell_lstm": "lstm", "cell_cudnn_gru": "cudnn_gru"}


# What searches found (generate_*) is test_reference_search's.
FILES = {path.stem for path in GOLDEN.glob("*.npz") if not path.stem.startswith("generate_")}


def test_each_golden_file_has_a_case_and_each_case_a_file():
    assert {*MODELS, *CELLS} == FILES


def load(name: str) -> SimpleNamespace:
    """A golden file's sections, ``param`` ``in`` ``out`` ``grad``, each a dictionary of arrays."""
    sections: dict[str, dict] = {"param": {}, "in": {}, "out": {}, "grad": {}}
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        for key in arrays:
            section, _, rest = key.partition(":")
            sections[section][rest] = arrays[key]
    sections["input"] = sections.pop("in")
    return SimpleNamespace(**sections)


def left_padded(x_BN: np.ndarray, mask_BN: np.ndarray, filler) -> np.ndarray:
    """The same rows with their padding on the left, made of ``filler``."""
    result = np.full_like(x_BN, filler)
    for row, (x, mask) in enumerate(zip(x_BN, mask_BN)):
        result[row, len(mask) - mask.sum() :] = x[mask]
    return result


def close(actual, desired, what: str) -> None:
    desired = np.asarray(desired)
    chex.assert_shape(actual, desired.shape)
    assert np.isfinite(actual).all(), what
    assert np.abs(np.asarray(actual) - desired).max() <= TOLERANCE, what


# The loss sees only the sum of torch's two biases: its gradient by either one is the gradient by ours.
BOTH = rules.Layout(lambda g: (g, g), None)


def under_torch_names(gradient, table) -> dict[str, np.ndarray]:
    table = [rule._replace(layout=BOTH) if rule.layout is rules.SPLIT_SUM else rule for rule in table]
    return rules.to_reference(gradient, table)


def same_gradient(actual: dict, desired: dict) -> None:
    assert actual.keys() == desired.keys()
    for name, gradient in desired.items():
        assert np.abs(gradient).max() > 1e3 * TOLERANCE, f"the golden file's gradient of {name} says nothing"
        close(actual[name], gradient, f"gradient of {name}")


@functools.cache
def model_case(name: str) -> SimpleNamespace:
    """The golden file with our model, its parameters converted, and what is compiled once for all tests."""
    case = load(name)
    model = MODELS[name].build()
    case.rules = model.RULES
    case.source = Tokens(case.input["source_ids"], case.input["source_mask"])
    case.target = Tokens(case.input["target_ids"], case.input["target_mask"])
    template = jax.eval_shape(model.init, jax.random.key(0), case.source, case.target)["params"]
    case.params = rules.from_reference(case.param, model.RULES, template)

    def loss(params, source, target):
        outputs = model.apply({"params": params}, source, target, attention=True)
        log_p_BTV = jax.nn.log_softmax(outputs.logits)
        log_p_BT = jnp.take_along_axis(log_p_BTV, target.ids[..., None], axis=-1)[..., 0]
        return -(log_p_BT * target.mask).sum(axis=1).mean(), outputs

    @jax.jit
    def run(params, source, target):
        (_, outputs), gradient = jax.value_and_grad(loss, has_aux=True)(params, source, target)
        return outputs, gradient, step_by_step(model, params, source, target)

    case.run = run
    case.on_target = lambda x_BTV: x_BTV * case.target.mask[..., None]
    return case


each_model = pytest.mark.parametrize("name", sorted(FILES - set(CELLS) | set(MODELS)))


@each_model
def test_model(name):
    """Logits, all at once and step by step, attention and gradients, with the source padded on either side: compiled once."""
    case = model_case(name)
    left = Tokens(*(left_padded(x, case.source.mask, filler) for x, filler in zip(case.source, (5, False))))
    for side, source in {"right": case.source, "left": left}.items():
        outputs, gradient, stepwise_BTV = case.run(case.params, source, case.target)
        close(case.on_target(outputs.logits), case.out["logits"], f"{side}-padded logits")
        close(case.on_target(stepwise_BTV), case.out["logits"], f"{side}-padded logits, step by step")
        same_gradient(under_torch_names(gradient, case.rules), case.grad)
        for key in [key for key in case.out if key.startswith("attention:")]:
            weights_BHTS = outputs.attention[key.removeprefix("attention:")] * case.target.mask[:, None, :, None]
            expected_BHTS = case.out[key]
            if side == "left":
                expected_BHTS = np.stack(
                    [np.roll(row, (~mask).sum(), axis=-1) for row, mask in zip(expected_BHTS, case.source.mask)]
                )
            close(weights_BHTS, expected_BHTS, f"{side}-padded {key}")


@each_model
def test_conversion_round_trip(name):
    case = model_case(name)
    there = rules.to_reference(case.params, case.rules)
    assert there.keys() == case.param.keys()
    chex.assert_trees_all_equal(rules.from_reference(there, case.rules, case.params), case.params)


def cell_params(kind: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters of a cell. A GRU keeps apart the two biases of its candidate, one inside and one outside of r * (...)."""
    b_ih, b_hh = tensors["cell.bias_ih_l0"], tensors["cell.bias_hh_l0"]
    params = {"input_kernel": tensors["cell.weight_ih_l0"].T, "recurrent_kernel": tensors["cell.weight_hh_l0"].T}
    if kind != "cudnn_gru":
        return params | {"bias": b_ih + b_hh}
    gates = 2 * HIDDEN
    bias = np.concatenate([b_ih[:gates] + b_hh[:gates], b_ih[gates:]])
    return params | {"bias": bias, "recurrent_bias": b_hh[gates:]}


def cell_gradient(kind: str, gradient: dict) -> dict[str, np.ndarray]:
    """The gradient under torch's names: of a sum, it is that of each term."""
    bias = np.asarray(gradient["bias"])
    named = {"cell.weight_ih_l0": gradient["input_kernel"].T, "cell.weight_hh_l0": gradient["recurrent_kernel"].T}
    b_hh = np.concatenate([bias[: 2 * HIDDEN], gradient["recurrent_bias"]]) if kind == "cudnn_gru" else bias
    return named | {"cell.bias_ih_l0": bias, "cell.bias_hh_l0": b_hh}


@pytest.mark.parametrize("name", sorted({p.stem for p in GOLDEN.glob("cell_*.npz")} | set(CELLS)))
def test_cell(name):
    case, kind = load(name), CELLS[name]
    cell = Cell(kind, EMBED, HIDDEN)
    params = cell_params(kind, case.param)
    weights = {key.removesuffix("_weight"): value for key, value in case.input.items() if key.endswith("_weight")}

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, x, mask):
        results = {}
        for direction in ("forward", "backward"):
            carry, h = cell.apply({"params": params}, x, mask, reverse=direction == "backward")
            c, last = carry if kind == "lstm" else (None, carry)
            results |= {f"{direction}_h": h, f"{direction}_last_h": last}
            if c is not None:
                results[f"{direction}_last_c"] = c
        assert results.keys() == weights.keys()
        return sum((results[name] * weights[name]).mean() for name in results), results

    mask = case.input["mask"]
    (_, results), gradient = run(params, case.input["x"], mask)
    for key, value in results.items():
        close(value, case.out[key], key)
    same_gradient(cell_gradient(kind, gradient), case.grad)

    shifted = left_padded(case.input["x"], mask, 3.0)
    (_, results), _ = run(params, shifted, left_padded(mask, mask, False))
    for key, value in results.items():
        expected = case.out[key]
        close(value, left_padded(expected, mask, 0.0) if key.endswith("ward_h") else expected, f"left-padded {key}")
