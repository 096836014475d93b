"""Models by their name on the Hugging Face hub, through its own client, cache and offline mode."""

from __future__ import annotations

import re
from pathlib import Path

from zoo.core import UserError, first_line

# What a model directory holds that is read here: never code, never a pickle.
FILES = ["*.json", "*.safetensors", "*.spm", "*.model", "*.txt"]


def is_name(text: str) -> bool:
    """Whether a text has the form of a hub name, "organisation/model".

    >>> is_name("Helsinki-NLP/opus-mt-en-de"), is_name("./a/b"), is_name("runs")
    (True, False, False)
    """
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) is not None


def fetch(name: str) -> Path:
    """The directory of the client's cache with a model's files, fetched where they are not there yet.

    Raises:
      UserError: the client is not installed, or has no such model and cannot fetch it.
    """
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise UserError(
            f"there is no directory {name}, and to fetch a model of that name huggingface_hub is missing: "
            "pip install 'seq2seq-zoo[hub]'"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=FILES, ignore_patterns="*/*"))
    except Exception as error:  # the client raises whatever its own libraries do
        reason = first_line(error)
        raise UserError(f"there is no directory {name}, and the hub gave no model of that name ({reason}): check it") from error
