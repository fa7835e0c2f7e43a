"""The processes of a run: how they find each other, which of them writes, and how all stop at the same step.

Several processes run one program on one global mesh (JAX's multi-controller runtime). What is computed is computed by
all; files, but for Orbax's, are written by the first.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from ddpm_jax.config import Launch


def join(launch: Launch) -> None:
    """Meet the other processes; to be called before anything else of JAX is used. Nothing happens for a single one.

    Raises:
        ValueError: for half of what is needed, naming the flag.
    """
    given = bool(launch.coordinator), launch.num_processes > 0, launch.process_id >= 0
    if any(given) and not all(given):
        raise ValueError(
            "--launch.coordinator, --launch.num-processes and --launch.process-id go together, got "
            f"{launch.coordinator!r}, {launch.num_processes} and {launch.process_id}"
        )
    if any(given) and not launch.process_id < launch.num_processes:
        raise ValueError(f"--launch.process-id must lie in 0 .. {launch.num_processes - 1}, got {launch.process_id}")
    if launch.timeout < 1:
        raise ValueError(f"--launch.timeout must be at least 1 second, got {launch.timeout}")
    limits: dict[str, Any] = {"heartbeat_timeout_seconds": launch.timeout, "initialization_timeout": 3 * launch.timeout}
    if any(given):
        jax.distributed.initialize(launch.coordinator, launch.num_processes, launch.process_id, **limits)
    elif launch.auto:
        jax.distributed.initialize(**limits)


def writes() -> bool:
    """Is this the process that writes files?"""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """Wait here for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """`asked(step)`: has the platform asked this run to end (SIGTERM)? All processes get the same answer at a step."""
    if jax.process_count() > 1:
        # JAX's own service hears of a notice to any process, and agrees on a step that none has reached yet.
        yield multihost_utils.reached_preemption_sync_point
        return
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # signals are the main thread's
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield lambda step: told.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
