"""Several processes of this machine that run one program together."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

from conftest import ROOT

SETTINGS = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
"""Compiled in half the time, for tests that aren't about how fast the code is."""


class Ended(NamedTuple):
    status: int
    out: list[str]
    """What it printed, but for what the collectives' own library does."""
    err: str


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(command: Callable[[int], list], *, count: int = 2, devices: int = 2, timeout: float = 600) -> list[Ended]:
    """Run `python *command(i) --launch...` in process i of `count`, each of so many devices, to the end of all.

    Those that are left after `timeout` seconds are killed.
    """
    launch = [
        "--launch.coordinator",
        f"localhost:{free_port()}",
        "--launch.num-processes",
        count,
        "--launch.process-id",
    ]
    settings = os.environ | SETTINGS | {"JAX_NUM_CPU_DEVICES": str(devices)}
    with contextlib.ExitStack() as stack:
        started = []
        for i in range(count):
            # Files, not pipes: a process that waits to be read would keep the others waiting.
            out, err = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
            line = [sys.executable, *map(str, [*command(i), *launch, i])]
            started.append((subprocess.Popen(line, cwd=ROOT, env=settings, stdout=out, stderr=err), out, err))
            stack.callback(started[-1][0].wait)
            stack.callback(started[-1][0].kill)
        for process, _, _ in started:
            process.wait(timeout)
        return [Ended(process.returncode, _lines(out), _text(err)) for process, out, err in started]


def _text(file: Any) -> str:
    file.seek(0)
    return file.read()


def _lines(file: Any) -> list[str]:
    # Several threads print at once: a line of theirs may have lost its beginning to another.
    return [line for line in _text(file).splitlines() if "[Gloo]" not in line and "peer ranks" not in line]
