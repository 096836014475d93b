"""Hugging Face directories in and out: config.json, safetensors, tokenizer files and generation_config.json, without torch.

Only the architectures that stand in a variant's ``HUGGINGFACE`` are read; nothing that a file names is imported. What a file
says and this zoo does not use is kept in the predictor's ``origin`` and written back.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from zoo.checkpoint import generation_config, tensors
from zoo.checkpoint.fields import Architecture, Fields
from zoo.checkpoint.placing import placer
from zoo.checkpoint.rules import from_reference, is_unused, makers
from zoo.core import EncoderOnly, ModelConfig, UserError
from zoo.decoding import Decoding
from zoo.labels import Labels
from zoo.predictor_base import PredictorBase
from zoo.predictors import predictor_for
from zoo.pretrained_text import KINDS, PretrainedTokenizer, kind_of, read_files
from zoo.variants import abstract_params, choose, variants

CONFIG, GENERATION = "config.json", "generation_config.json"
ORIGIN = {"architecture", "config", "generation", "tensors"}  # what ``Predictor.origin`` holds, and sometimes "unused"
MOST_UNUSED = 1 << 20  # bytes of a tensor that is kept as text


def architectures() -> dict[str, Architecture]:
    """Name -> what a variant makes of it, for all that can be read."""
    return {name: entry for module in variants().values() for name, entry in getattr(module, "HUGGINGFACE", {}).items()}


def is_huggingface(directory: Path) -> bool:
    """Whether a directory holds a config.json that names its architecture."""
    path = directory / CONFIG
    try:
        return path.is_file() and not {"architectures", "model_type"}.isdisjoint(tensors.read_json(path))
    except UserError:  # who reads it as one of ours says what is wrong with it
        return False


def load(directory: Path, dtype: Any = None, mesh: Mesh | None = None, read: bool = True) -> PredictorBase:
    """Load a model; ``zoo.load`` says what the arguments are. Unless ``read``, its ``params`` are shapes.

    Raises:
      UserError: a file is missing, damaged, of an architecture that is not read, or says what cannot be.
    """
    data = tensors.read_json(directory / CONFIG)
    name, architecture = architecture_of(data, directory / CONFIG)
    weights = tensors.Tensors.open(directory)
    config = architecture.read(Fields(data, str(directory / CONFIG), weights.entries))
    generation, where = None, directory / CONFIG
    if (directory / GENERATION).is_file():
        generation, where = tensors.read_json(directory / GENERATION), directory / GENERATION
    if generates(config):
        config = generation_config.with_ids(config, generation or {}, str(where))
        decoding = generation_config.read(data if generation is None else generation, str(where), config)
    else:
        decoding = Decoding(max_source_len=config.max_len)
    model = config.build()
    put = placer(model.SHARDING, dtype, mesh)
    origin = {
        "architecture": name,
        "config": data,
        "generation": generation,
        "tensors": {name: list(entry.shape) for name, entry in weights.entries.items()},
    }
    if unused := {name: packed(name, weights[name]) for name in weights if is_unused(name, model.RULES)}:
        origin["unused"] = unused
    tokenizers = read_tokenizers(directory, config, data)
    template = abstract_params(config)
    params = from_reference(weights, model.RULES, template, put) if read else template
    return predictor_for(model)(model, params, *tokenizers, decoding, origin=origin)


def generates(config: ModelConfig) -> bool:
    """Whether a configuration's model generates anything."""
    return not isinstance(config.build(), EncoderOnly)


def architecture_of(data: dict[str, Any], path: Path) -> tuple[str, Architecture]:
    """The architecture that a config.json names, among those that are read."""
    names, known = data.get("architectures"), architectures()
    if not isinstance(names, list) or len(names) != 1:
        raise UserError(f"architectures in {path} is {names!r}: a list of one name is wanted, of {', '.join(known)}")
    architecture = choose(names[0], known, f"the architecture in {path}")
    if data.get("model_type") != architecture.model_type:
        raise UserError(f"model_type in {path} is {data.get('model_type')!r}, but {names[0]} is {architecture.model_type!r}")
    return names[0], architecture


def read_tokenizers(
    directory: Path, config: ModelConfig, data: dict[str, Any]
) -> tuple[PretrainedTokenizer, PretrainedTokenizer | Labels]:
    """The tokenizers of source and target; for a classifier, the labels of its config.json."""
    files = read_files(directory)
    kind = KINDS[kind_of(files, directory, str(data.get("model_type")))]
    source = kind(files, "source", config.source_vocab_size, config.end_id)
    if config.wants_labels:
        return source, Labels.from_config(data, str(directory / CONFIG))
    return source, kind(files, "target", config.target_vocab_size, config.end_id)


def save(predictor: PredictorBase, directory: Path) -> None:
    """Write a model so that transformers loads it; a model that came from there under the names that it had.

    Raises:
      UserError: the model has no counterpart there, or its tokenizers have none.
    """
    origin = predictor.origin or {}
    config, model = predictor.model.config, predictor.model
    name = origin.get("architecture") or counterpart(config)
    files = tokenizer_files(predictor)
    generation = origin.get("generation")
    if generates(config):
        generation = generation_config.write(predictor.decoding, config, generation or {})
    unused = {name: unpacked(name, content) for name, content in origin.get("unused", {}).items()}
    like = {name: shape for name, shape in origin["tensors"].items() if name not in unused} if origin else None
    # Views of a single zero tell shapes and dtypes, so that the header can be written before any tensor is made.
    hollow = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), predictor.params)
    shapes = unused | {name: make() for name, make in makers(hollow, model.RULES, like).items()}
    shapes = {name: tensors.Shape(array.dtype, array.shape) for name, array in shapes.items()}
    made = makers(predictor.params, model.RULES, like)
    tensors.write(directory, shapes, lambda name: unused[name] if name in unused else made[name]())
    for file, content in files.items():
        (directory / file).write_bytes(content)
    if generation is not None:
        write_json(directory / GENERATION, generation)
    described = describe(config, name, origin)
    if config.wants_labels and Labels.from_config(described, CONFIG).names != predictor.target_tokenizer.names:
        described |= predictor.target_tokenizer.to_config()
    dtypes = [str(leaf.dtype) for leaf in jax.tree.leaves(predictor.params)]
    for key in {"dtype", "torch_dtype"} & set(described):
        described[key] = described[key] if described[key] in dtypes else dtypes[0]
    write_json(directory / CONFIG, described)  # last: without it nothing is a model


def describe(config: ModelConfig, name: str, origin: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model: the original where it still says the same, else with the fields that this zoo reads."""
    architecture, original = architectures()[name], origin.get("config") or {}
    if original:
        same = architecture.read(Fields(original, CONFIG, origin["tensors"]))
        if generation_config.with_ids(same, origin["generation"] or {}, GENERATION) == config:
            return dict(original)
    return {**original, "architectures": [name], "model_type": architecture.model_type, **architecture.write(config)}


def counterpart(config: ModelConfig) -> str:
    """The architecture that a configuration is: the one that reads back all that it writes of it."""
    for name, architecture in architectures().items():
        try:
            if architecture.read(Fields(architecture.write(config), name)) == config:
                return name
        except (AttributeError, UserError):  # a configuration of another class, or one beyond what the format can say
            continue
    raise UserError(
        f"{type(config).__name__} with these settings has no counterpart in Hugging Face's format: leave out --format, or "
        f"train one of {', '.join(architectures())}"
    )


def packed(name: str, array: np.ndarray) -> dict[str, Any]:
    """An unused tensor as JSON. Raises UserError if it is not small."""
    if array.nbytes > MOST_UNUSED:
        raise UserError(f"{name} has {array.nbytes:,} bytes, more than any model has of it: it is a model of another kind")
    content = base64.b64encode(array.tobytes()).decode("ascii")
    return {"dtype": tensors.NAMES[array.dtype], "shape": list(array.shape), "base64": content}


def unpacked(name: str, data: dict[str, Any]) -> np.ndarray:
    """The inverse, for any JSON. Raises UserError if it is none."""
    try:
        content = base64.b64decode(data["base64"], validate=True)
        return np.frombuffer(content, tensors.DTYPES[data["dtype"]]).reshape(data["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the tensor {name} of the model's origin is not readable ({error}): load the original again"
        ) from error


def tokenizer_files(predictor: PredictorBase) -> dict[str, bytes]:
    """The files of a predictor's tokenizers, which are one there."""
    source, target = predictor.source_tokenizer, predictor.target_tokenizer
    if isinstance(source, PretrainedTokenizer):
        return source.files
    if not isinstance(target, Labels) and source.to_json() != target.to_json():
        raise UserError(
            "Hugging Face's format has one tokenizer for both sides, this model one for each: train with tokenizers.shared, or "
            "leave out --format"
        )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    return {
        "tokenizer.json": json.dumps(source.to_json(), ensure_ascii=False).encode("utf-8"),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode("utf-8"),
    }


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
