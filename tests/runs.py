"""Directories of training runs, made without training, copied and spoilt."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import zoo
from train.checkpoint import Checkpoints
from train.step import new_state
from zoo import rnn
from zoo.checkpoint.directory import describe
from zoo.core import PyTree
from zoo.text import Tokenizer

BEST = {1: 0.3, 2: 0.1, 3: 0.2}


def model_run(workdir: Path) -> list[PyTree]:
    """The steps 1, 2 and 3 of a tiny model, the last two with an average: half the parameters. Returns those of each step."""
    tokenizer = Tokenizer.train("characters", ["abc"])
    size = tokenizer.vocab_size
    config = dataclasses.replace(rnn.PRESETS["elman-tiny"], source_vocab_size=size, target_vocab_size=size)
    model = config.build()
    init = jax.jit(model.init)
    params = [init(jax.random.key(step), *config.example())["params"] for step in range(4)]
    predictor = zoo.Predictor(model, params[0], tokenizer, tokenizer, zoo.Decoding())
    checkpoints = Checkpoints(workdir, keep_last=3)
    for step, best in BEST.items():
        state = new_state(params[step], optax.identity(), jax.random.key(0))._replace(step=jnp.int32(step))
        if step > 1:
            state = state._replace(ema=jax.tree.map(lambda x: x / 2, params[step]))
        checkpoints.save(state, {}, describe(predictor), {}, best)
    checkpoints.close()
    return params


def copy(source: Path, target: Path) -> Path:
    """The same files by other names: they are replaced when they are changed, never written into."""
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(source, target, copy_function=os.link)
