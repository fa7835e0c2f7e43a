"""The processes of a run: how they find each other, which of them writes, and how all stop at the same step.

Several processes run one program on one global mesh (JAX's multi-controller runtime). What is computed is computed by
all; files, but for Orbax's, are written by the first.
"""

import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the client of the processes' common store has no public name
from jax.experimental import multihost_utils

from ddpm_jax.config import Launch
from ddpm_jax.training import last_words

LOST = 134
"""Status of a process that ends because another one is gone: what a shell says of one that JAX's runtime aborts."""
FAILURES = "ddpm_jax/failures/"
"""Where in the common store a process says why it ends."""
EVERY = 1.0
"""Seconds between two looks there, of about 0.3 ms each."""
GRACE = 5.0
"""Seconds in which a process that was told of another's error may meet the same and say so itself."""
# What the runtime calls an error of a collective or a barrier: another one's death, as a process may see it first.
OF_OTHERS = re.compile(
    "^(UNAVAILABLE|((UNKNOWN|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): "
    ".*(gloo|nccl|mpi|peer|remote|connection|socket|barrier|heartbeat|coordination|distributed)))",
    re.IGNORECASE | re.DOTALL,
)

_over = threading.Event()  # this process's own end has come: others' errors are no concern any more
_joined: list[int] = []  # the time-out, once this is one process of several


def join(launch: Launch, *, saves: str = "") -> None:
    """Meet the other processes; to be called before anything else of JAX is used. Nothing happens for a single one.

    From here on the death of another process, or its error, ends this one with one line and status `LOST`.

    Args:
        launch: how they meet.
        saves: the folder of checkpoints that this line speaks of; "" for a program without.

    Raises:
        ValueError: for half of what is needed, or where JAX doesn't find the others, naming the flag.
        ConnectionError: if they can't meet.
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
    if not any(given) and not launch.auto:
        return
    # The others are still at work when the first is done: only one that doesn't answer is given up.
    settings: dict[str, Any] = {
        "heartbeat_timeout_seconds": launch.timeout,
        "initialization_timeout": 3 * launch.timeout,
        "shutdown_timeout_seconds": 24 * 3600,
    }
    if any(given):
        ids = {"num_processes": launch.num_processes, "process_id": launch.process_id}
        settings |= {"coordinator_address": launch.coordinator} | ids
    if not os.environ.get("DDPM_JAX_TRACEBACK"):
        _translate(launch, saves)
    try:
        jax.distributed.initialize(**settings)
    except ValueError as error:
        hint = (
            "leave it out for one process, or give --launch.coordinator, --launch.num-processes and --launch.process-id"
        )
        raise ValueError(f"--launch.auto: JAX knows no cluster here ({error}); {hint}") from error
    except RuntimeError as error:
        raise ConnectionError(f"the processes can't meet: {str(error).splitlines()[0]}") from error
    _watch(saves)
    _joined.append(launch.timeout)


def _translate(launch: Launch, saves: str) -> None:
    """From here on what C++ code writes to stderr goes through `last_words`; Python's own stays as it is."""
    count = str(launch.num_processes) if launch.num_processes > 0 else ""
    command = [sys.executable, "-I", "-S", last_words.__file__, _program(), saves, count, str(launch.timeout)]
    direct = os.dup(2)
    listener = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert listener.stdin is not None
    sys.stderr.flush()
    os.dup2(listener.stdin.fileno(), 2)
    sys.stderr = os.fdopen(direct, "w", buffering=1, errors="backslashreplace")


def _program() -> str:
    return Path(sys.argv[0]).name


def _watch(saves: str) -> None:
    """Look for errors of other processes, till the program's end, in a thread: the main one may wait for them."""
    client: Any = distributed.global_state.client
    count = distributed.global_state.num_processes

    def watch() -> None:
        found = []
        while not found:
            if _over.wait(EVERY):
                return
            try:
                found = client.key_value_dir_get(FAILURES)
            except RuntimeError:
                return  # the first process is gone: the runtime ends this one
        if not _over.wait(GRACE):
            key, said = min(found)
            what = f"process {key.removeprefix(FAILURES)} of {count} has ended ({said})"
            print("\n" + last_words.sentence(what, program=_program(), saves=saves), file=sys.stderr)
            leave(LOST)

    thread = threading.Thread(target=watch, name="errors of other processes", daemon=True)
    thread.start()

    def stop() -> None:
        _over.set()
        thread.join()

    atexit.register(stop)  # before JAX's own end, which waits for the other processes


def failed(error: BaseException) -> bool:
    """Tell the other processes, if there are any, that this one ends with an error; were there any?

    Doesn't come back if the error is but another process's death as a collective shows it: then this process ends as
    one that is told of that.
    """
    if not _joined:
        return False
    if OF_OTHERS.match(str(error)):
        time.sleep(_joined[0] + GRACE + 5 * EVERY)
    _over.set()
    client: Any = distributed.global_state.client
    said = " ".join(str(error).split())[:300] or type(error).__name__
    with contextlib.suppress(RuntimeError):  # the first process may be gone
        client.key_value_set(f"{FAILURES}{distributed.global_state.process_id}", said)
    return True


def leave(status: int) -> NoReturn:
    """End without JAX's own end, which would wait for processes that wait for this one."""
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # all is said
        if distributed.global_state.process_id == 0:
            time.sleep(GRACE + 2 * EVERY)  # the others are told through this process
    finally:
        os._exit(status)


def writes() -> bool:
    """Is this the process that writes files?"""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """Wait here for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """`asked(n)`: has the platform asked this run to end (SIGTERM)? All processes get the same answer at the same n.

    n counts the calls in ones, from anywhere: processes agree on the next n, and one that is passed over never comes.
    A Ctrl-C that Python lost is raised by the next call: what is raised inside a callback (JAX has one of every garbage
    collection) is printed and dropped, and a thread that runs programs itself (`heap`) hears of most signals in one.

    Raises:
        KeyboardInterrupt: by `asked`, of a single process.
    """
    if jax.process_count() > 1:
        # JAX's own service hears of a notice to any process, and agrees on a step that none has reached yet.
        yield multihost_utils.reached_preemption_sync_point
        return
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda n: False  # signals are the main thread's
        return
    interrupted: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        interrupted.append(number)
        signal.default_int_handler(number, frame)

    def asked(n: int) -> bool:
        if interrupted:
            raise KeyboardInterrupt
        return told.is_set()

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield asked
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # A program that was asked to end is about to: asked again, it needn't be killed.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if told.is_set() else before)
