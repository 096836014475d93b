"""Many hosts: joining them, and stopping them together. All that is distributed is JAX's own ``jax.distributed``.

Every host runs the same command on a directory that all of them see. The first one writes; all of them compute.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.experiment import Hosts
from zoo.core import UserError, first_line

JOINING = 300  # seconds that hosts wait for each other at the start: machines of one job do not come up at once
PARTING = 10  # seconds that a host which has failed gives the others to say that they have too


def connect(hosts: Hosts) -> None:
    """Join the other hosts; before anything asks JAX for its devices.

    Raises:
      UserError: the fields contradict each other, or the hosts did not find each other.
    """
    if hosts.kind == "one":
        return
    if hosts.timeout < 1:
        raise UserError(f"hosts.timeout is {hosts.timeout}: it must be at least 1 second")
    given: dict[str, Any] = {}
    if hosts.kind == "given":
        if not 0 <= hosts.index < hosts.count:
            raise UserError(f"hosts.index is {hosts.index}: it must be 0 to hosts.count - 1, which is {hosts.count - 1}")
        if not hosts.coordinator.rpartition(":")[2].isdecimal():
            raise UserError(f"hosts.coordinator is {hosts.coordinator!r}: write host:port, such as 10.0.0.1:9876")
        given = {"coordinator_address": hosts.coordinator, "num_processes": hosts.count, "process_id": hosts.index}
        given["coordinator_bind_address"] = hosts.coordinator  # JAX would listen on every address of the machine
        if hosts.index == 0:
            check_address(hosts.coordinator)
        print(f"host {hosts.index} of {hosts.count} joins the others at {hosts.coordinator}", file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=JOINING,
            heartbeat_timeout_seconds=hosts.timeout,
            shutdown_timeout_seconds=hosts.timeout + PARTING,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the hosts did not find each other ({first_line(error)}): see to it that each starts this command, "
            f"and that hosts.kind {hosts.kind!r} and its fields are right"
        ) from error


def check_address(coordinator: str) -> None:
    """Raises UserError if this host cannot listen there: JAX would end the process without a word to its user."""
    host, _, port = coordinator.rpartition(":")
    try:
        socket.create_server((host, int(port))).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"hosts.coordinator is {coordinator}, where the first host cannot listen ({error}): give a free port of its own "
            "address"
        ) from error


def first() -> bool:
    """Whether this is the host that writes and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that every host runs by itself: a ``UserError`` of any of them is raised on all, at its end."""
    error = None
    try:
        yield
    except UserError as raised:
        error = raised
    said = gather(str(error or ""))
    if len(set(said)) == 1:
        if error:
            raise error
        return
    raise UserError("; ".join(f"host {host} of {len(said)}: {text}" for host, text in enumerate(said) if text)) from error


def agree(facts: dict[str, Any]) -> None:
    """Compare what every host must have alike; ``facts`` is name -> JSON value.

    Raises:
      UserError: on all hosts, the first fact in which they differ, and who has what.
    """
    all_facts = [json.loads(text) for text in gather(json.dumps(facts))]
    for name in facts:
        values = [json.dumps(each.get(name)) for each in all_facts]
        if len(set(values)) > 1:
            holders = {value: [str(host) for host, other in enumerate(values) if other == value] for value in values}
            told = ", ".join(f"{value} on host {' and '.join(hosts)}" for value, hosts in holders.items())
            raise UserError(f"the hosts differ in {name}, {told}: start the same command on the same files everywhere")


def gather(text: str) -> list[str]:
    """The text of each host, in the order of hosts."""
    data = text.encode()
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def whole(array: jax.Array) -> np.ndarray:
    """An array that lies on the devices of all hosts, on this host; all must ask."""
    return multihost_utils.process_allgather(array, tiled=True)


def leave(code: int) -> int:
    """The exit code of a command that ends; after a failure with other hosts the process ends here.

    JAX would wait for those that have not failed, and then replace the code by that of an abort. They notice by themselves.
    """
    if code and jax.distributed.is_initialized():
        goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)  # returns when all hosts are here
        goodbye.start()
        goodbye.join(PARTING)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def digest(*parts: Any) -> str:
    """A short name for JSON values, equal only for equal ones."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def code() -> str:
    """A digest of this program's own files."""
    root = Path(__file__).parent.parent
    files = sorted(path for room in ("zoo", "train") for path in (root / room).rglob("*.py"))
    return digest([[str(path.relative_to(root)), path.read_text(encoding="utf-8")] for path in files])
