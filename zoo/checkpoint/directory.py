"""Models in directories: what training wrote, what ``python -m zoo export`` writes, and Hugging Face's own.

An exported directory holds ``config.json`` (variant, fields, decoding), ``model.safetensors`` (one tensor a parameter, named by
its path; several files and an index beyond 5 GB) and ``source.json`` and ``target.json`` (standard tokenizer files, or what a
pretrained model brought). Nothing in them is ever executed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from zoo import pretrained_text
from zoo.checkpoint import hub, huggingface, onnx, stablehlo, tensors, vector_files
from zoo.checkpoint.placing import placer, sharding
from zoo.checkpoint.rules import some
from zoo.core import PyTree, UserError, flatten_params, unflatten_params
from zoo.decoding import Decoding
from zoo.predictor_base import PredictorBase
from zoo.predictors import predictor_for
from zoo.variants import abstract_params, config_from_json, config_to_json, from_fields

Format = Literal["zoo", "huggingface", "stablehlo", "onnx", "word2vec"]
FILES = ("stablehlo", "word2vec")  # formats that are one file
CONFIG, TOKENIZERS = "config.json", ("source.json", "target.json")
AGAIN = "export the model again"


def describe(predictor: PredictorBase) -> dict[str, Any]:
    """All of a predictor but its weights, as JSON."""
    return {
        "format": "seq2seq-zoo",
        "model": config_to_json(predictor.model.config),
        "decoding": dataclasses.asdict(predictor.decoding),
        "source_tokenizer": predictor.source_tokenizer.to_json(),
        "target_tokenizer": predictor.target_tokenizer.to_json(),
        **({} if predictor.origin is None else {"origin": predictor.origin}),
    }


def predictor_from(description: Any, where: str, read_params) -> PredictorBase:
    """The inverse: ``read_params`` gets the model and its abstract parameters and returns the real ones.

    Raises:
      UserError: the description is not one, or its parts do not fit each other.
    """
    wanted = {"model", "decoding", "source_tokenizer", "target_tokenizer"}
    if not isinstance(description, dict) or not wanted <= set(description):
        raise UserError(f"{where} does not describe a model of this zoo: it needs {', '.join(sorted(wanted))}")
    config = config_from_json(description["model"], where)
    tokenizers = [
        pretrained_text.from_json(description[f"{side}_tokenizer"], f"{where}/{side}.json") for side in ("source", "target")
    ]
    decoding = from_fields(Decoding, description["decoding"], where)
    origin = description.get("origin")
    if origin is not None and (not isinstance(origin, dict) or set(origin) - {"unused"} != huggingface.ORIGIN):
        raise UserError(f"{where} has an origin that is none: save the model again")
    model = config.build()
    return predictor_for(model)(model, read_params(model, abstract_params(config)), *tokenizers, decoding, origin=origin)


def save(predictor: PredictorBase, directory: str | Path, format: Format = "zoo") -> None:
    """Write a directory that ``load`` reads, without Orbax; or the model's whole generation as one file.

    Args:
      predictor: what ``load`` gave, or your own.
      directory: one that does not exist yet; for "stablehlo" and "word2vec" a file that does not.
      format: "zoo" for any model; "huggingface" for the architectures that this zoo reads from there: transformers and
        its like load it, and a model that came from there has its tensors under the same names; "stablehlo" and "onnx"
        for programs without this zoo (the files of these names in ``zoo.checkpoint``); "word2vec" for word vectors, as text
        or, by a name that ends in .bin, binary.

    Raises:
      UserError: the directory exists and is not empty, or cannot be written, or the model has no counterpart there.
    """
    if format not in FORMATS:
        raise UserError(f"format is {format!r}: choose {' or '.join(FORMATS)}")
    path, one_file = Path(directory), format in FILES
    if path.exists() and (one_file or not path.is_dir() or any(path.iterdir())):
        what = "exists" if one_file else "exists and is not an empty directory"
        raise UserError(f"{path} {what}: name a new one, nothing is overwritten")
    try:
        (path.parent if one_file else path).mkdir(parents=True, exist_ok=True)
        FORMATS[format](predictor, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): free some space or name another") from error


def save_exported(predictor: PredictorBase, directory: Path) -> None:
    """Write the format of this zoo."""
    description = describe(predictor)
    for side, name in zip(("source", "target"), TOKENIZERS, strict=True):
        (directory / name).write_text(json.dumps(description.pop(f"{side}_tokenizer"), ensure_ascii=False), encoding="utf-8")
    params = flatten_params(predictor.params)
    shapes = {name: tensors.Shape(np.dtype(x.dtype), x.shape) for name, x in params.items()}
    tensors.write(directory, shapes, lambda name: np.asarray(params[name]))
    (directory / CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


FORMATS = {
    "zoo": save_exported,
    "huggingface": huggingface.save,
    "stablehlo": stablehlo.save,
    "onnx": onnx.save,
    "word2vec": vector_files.save,
}


def load(directory: str | Path, dtype: Any = None, mesh: Mesh | None = None) -> PredictorBase:
    """Load a model: an exported directory, a training run's (its best checkpoint), one checkpoint of a run, a Hugging Face
    directory, or the name of a model on the hub ("organisation/model"), for which a directory of that name goes first.

    Args:
      directory: of one of these kinds.
      dtype: what the parameters become, such as ``jnp.bfloat16``; None keeps each as it is saved.
      mesh: devices that share the parameters by the model's ``SHARDING``; a process reads its own part alone. None puts
        them on the first device.

    Raises:
      UserError: the directory is none of these, is damaged, or holds another model than it says.
    """
    return load_directory(fetched(directory), dtype, mesh)


def load_settings(directory: str | Path) -> PredictorBase:
    """What ``load`` gives, without reading the weights: ``params`` are their shapes.

    Raises:
      UserError: as ``load``.
    """
    return load_directory(fetched(directory), None, None, weights=False)


def fetched(directory: str | Path) -> Path:
    """The directory itself, or that of the hub's cache if it is a model's name there."""
    path = Path(directory)
    return hub.fetch(str(directory)) if not path.exists() and hub.is_name(str(directory)) else path


def load_directory(directory: Path, dtype: Any, mesh: Mesh | None, weights: bool = True) -> PredictorBase:
    if not directory.exists():
        raise UserError(
            f"there is no directory {directory}: give the --workdir of a training run, an exported model, a Hugging Face "
            "directory or a hub name"
        )
    if huggingface.is_huggingface(directory):
        return huggingface.load(directory, dtype, mesh, weights)
    if (directory / CONFIG).is_file():
        return load_exported(directory, dtype, mesh, weights)
    from zoo.checkpoint import orbax

    step = orbax.find_step(directory)
    if step is None:
        raise UserError(
            f"{directory} holds no model: {CONFIG} (an export or a Hugging Face directory) or {orbax.CHECKPOINTS} (a training "
            "run that has reached its first evaluation) were looked for"
        )

    description = orbax.read_json(step, "model")

    def read(model, template):
        place = {path: sharding(path, x.shape, model.SHARDING, mesh) for path, x in flatten_params(template).items()}
        params = orbax.read_params(step, template, unflatten_params(place), description.get("lora"))
        return params if dtype is None else jax.tree.map(lambda x: x.astype(dtype), params)

    return predictor_from(description, str(step), read if weights else unread)


def unread(model, template: PyTree) -> PyTree:
    """In place of the parameters their shapes."""
    return template


def load_average(directory: str | Path, count: int) -> PredictorBase:
    """Load the mean of the parameters of a training run's last ``count`` checkpoints.

    Raises:
      UserError: the run has fewer that verify.
    """
    from zoo.checkpoint import orbax

    found = orbax.last_steps(Path(directory), count)
    description = orbax.read_json(found[0], "model")
    return predictor_from(
        description,
        str(found[0]),
        lambda model, template: orbax.average_params(found, template, description.get("lora")),
    )


def load_exported(directory: Path, dtype: Any, mesh: Mesh | None, weights: bool = True) -> PredictorBase:
    description = tensors.read_json(directory / CONFIG, AGAIN)
    for side, name in zip(("source", "target"), TOKENIZERS, strict=True):
        description[f"{side}_tokenizer"] = tensors.read_json(directory / name, AGAIN)

    def read(model, template):
        return read_weights(directory, template, placer(model.SHARDING, dtype, mesh))

    return predictor_from(description, str(directory), read if weights else unread)


def read_weights(directory: Path, template: PyTree, put: Callable[..., Any]) -> PyTree:
    """Exactly the tensors of the template, with their shapes; the headers are checked before any is read."""
    found, wanted = tensors.Tensors.open(directory), flatten_params(template)
    check_names(set(found), set(wanted), directory)
    for name, leaf in wanted.items():
        if found.entries[name].shape != leaf.shape:
            raise UserError(
                f"{name} in {directory} has the shape {found.entries[name].shape}, but the model wants {leaf.shape}"
            )
    return unflatten_params({name: put(name, found[name], leaf) for name, leaf in wanted.items()})


def check_names(found: set[str], wanted: set[str], path: Path | str) -> None:
    """Raises UserError unless both sets are the same."""
    if found != wanted:
        missing, extra = sorted(wanted - found), sorted(found - wanted)
        raise UserError(f"{path} is of another model: missing {some(missing)}; not taken {some(extra)}")
