"""Evaluation: by teacher forcing (loss, accuracy) and by decoding (what the task is scored by)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import jax

from train.data import Example
from train.lora import Lora
from train.metrics import add, divide
from train.step import State, model_params
from train.tasks import Task
from zoo.core import PyTree
from zoo.predictor import Prediction, Predictor


def teacher_forced(eval_step: Callable, params: PyTree, batches: Iterable, put: Callable) -> dict[str, float]:
    """Loss in nats a token, perplexity and accuracy over all batches; without perplexity where tokens are told from noise."""
    totals: dict = {}
    for batch in batches:
        totals = add(totals, eval_step(params, put(batch)))
    values = divide(jax.device_get(totals))
    if "nll" not in values:
        return values
    return {"nll": values["nll"], "perplexity": math.exp(min(values["nll"], 700)), "accuracy": values["accuracy"]}


def decoded(predictor: Predictor, task: Task, examples: Sequence[Example]) -> tuple[dict[str, float], list[Prediction]]:
    """The task's scores on these examples, and the predictions."""
    predictions = predictor.predictions([example.source for example in examples])
    return task.score(predictions, [example.references for example in examples]), predictions


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """``count`` examples spread evenly over the set: the same ones each time."""
    count = min(count, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def parameters(state: State, lora: Lora) -> PyTree:
    """The parameters that are evaluated and exported: of what is trained the moving average, where there is one."""
    trained = state.params if state.ema is None else state.ema
    if state.base is None:
        return trained
    places = jax.tree.map(lambda x: x.sharding, state.base)
    return jax.jit(model_params, static_argnums=2, out_shardings=places)(trained, state.base, lora)
