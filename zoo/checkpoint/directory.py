"""Models in directories: what training wrote, and what ``python -m zoo export`` writes.

An exported directory holds ``config.json`` (variant, fields, decoding), ``model.safetensors`` (one tensor a parameter, named by
its path) and ``source.json`` and ``target.json`` (standard tokenizer files). Nothing in them is ever executed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from zoo.checkpoint.rules import some
from zoo.core import PyTree, UserError, flatten_params, unflatten_params
from zoo.decoding import Decoding
from zoo.predictor import Predictor
from zoo.text import Tokenizer
from zoo.variants import abstract_params, config_from_json, config_to_json, from_fields

CONFIG, WEIGHTS, TOKENIZERS = "config.json", "model.safetensors", ("source.json", "target.json")


def describe(predictor: Predictor) -> dict[str, Any]:
    """All of a predictor but its weights, as JSON."""
    return {
        "format": "seq2seq-zoo",
        "model": config_to_json(predictor.model.config),
        "decoding": dataclasses.asdict(predictor.decoding),
        "source_tokenizer": predictor.source_tokenizer.to_json(),
        "target_tokenizer": predictor.target_tokenizer.to_json(),
    }


def predictor_from(description: Any, where: str, read_params) -> Predictor:
    """The inverse: ``read_params`` gets the abstract parameters and returns the real ones.

    Raises:
      UserError: the description is not one, or its parts do not fit each other.
    """
    wanted = {"model", "decoding", "source_tokenizer", "target_tokenizer"}
    if not isinstance(description, dict) or not wanted <= set(description):
        raise UserError(f"{where} does not describe a model of this zoo: it needs {', '.join(sorted(wanted))}")
    config = config_from_json(description["model"], where)
    tokenizers = [
        Tokenizer.from_json(description[f"{side}_tokenizer"], f"{where}/{side}.json") for side in ("source", "target")
    ]
    decoding = from_fields(Decoding, description["decoding"], where)
    return Predictor(config.build(), read_params(abstract_params(config)), *tokenizers, decoding)


def save(predictor: Predictor, directory: str | Path) -> None:
    """Write a directory that ``load`` reads with safetensors alone, without Orbax.

    Raises:
      UserError: the directory exists and is not empty, or cannot be written.
    """
    from safetensors.flax import save_file

    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists and is not an empty directory: name a new one, nothing is overwritten")
    description = describe(predictor)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for side, name in zip(("source", "target"), TOKENIZERS, strict=True):
            (directory / name).write_text(
                json.dumps(description.pop(f"{side}_tokenizer"), ensure_ascii=False), encoding="utf-8"
            )
        save_file(flatten_params(predictor.params), directory / WEIGHTS)
        (directory / CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{directory} cannot be written ({error.strerror or error}): free some space or name another"
        ) from error


def load(directory: str | Path) -> Predictor:
    """Load a model: an exported directory, a training run's (its best checkpoint), or one checkpoint of a run.

    Raises:
      UserError: the directory is none of these, is damaged, or holds another model than it says.
    """
    directory = Path(directory)
    if not directory.exists():
        raise UserError(f"there is no directory {directory}: give the --workdir of a training run or an exported model")
    if (directory / WEIGHTS).is_file() and (directory / CONFIG).is_file():
        return load_exported(directory)
    from zoo.checkpoint import orbax

    step = orbax.find_step(directory)
    if step is None:
        raise UserError(
            f"{directory} holds no model: {CONFIG} with {WEIGHTS} (an export) or {orbax.CHECKPOINTS} (a training run that has "
            "reached its first evaluation) were looked for"
        )
    return predictor_from(orbax.read_json(step, "model"), str(step), lambda template: orbax.read_params(step, template))


def load_average(directory: str | Path, count: int) -> Predictor:
    """Load the mean of the parameters of a training run's last ``count`` checkpoints.

    Raises:
      UserError: the run has fewer that verify.
    """
    from zoo.checkpoint import orbax

    found = orbax.last_steps(Path(directory), count)
    return predictor_from(
        orbax.read_json(found[0], "model"), str(found[0]), lambda template: orbax.average_params(found, template)
    )


def load_exported(directory: Path) -> Predictor:
    description = read_json(directory / CONFIG)
    if isinstance(description, dict):
        for side, name in zip(("source", "target"), TOKENIZERS, strict=True):
            description[f"{side}_tokenizer"] = read_json(directory / name)
    return predictor_from(description, str(directory), lambda template: read_weights(directory / WEIGHTS, template))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: export the model again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}): export the model again") from error


def read_weights(path: Path, template: PyTree) -> PyTree:
    """Exactly the tensors of the template, with their shapes and dtypes; the header is checked before any is read."""
    from safetensors import SafetensorError, safe_open

    wanted = flatten_params(template)
    try:
        with safe_open(path, framework="flax") as file:
            names = set(file.keys())
            check_names(names, set(wanted), path)
            for name, leaf in wanted.items():
                shape = tuple(file.get_slice(name).get_shape())
                if shape != leaf.shape:
                    raise UserError(f"{name} in {path} has the shape {shape}, but the model wants {leaf.shape}")
            return unflatten_params({name: file.get_tensor(name) for name in wanted})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): export the model again") from error


def check_names(found: set[str], wanted: set[str], path: Path | str) -> None:
    """Raises UserError unless both sets are the same."""
    if found != wanted:
        missing, extra = sorted(wanted - found), sorted(found - wanted)
        raise UserError(f"{path} is of another model: missing {some(missing)}; not taken {some(extra)}")
