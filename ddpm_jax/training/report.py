"""What a run says of itself: metrics.jsonl, TensorBoard events and the figures that go into both."""

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

from ddpm_jax import files
from ddpm_jax.training import processes

Values = dict[str, float]
Write = Callable[[int, Values], None]
Push = Callable[[], None]

PUSH_EVERY = 30.0
"""Seconds between two copies of a run's log to its bucket, each of all lines so far."""


def summary(metrics: Sequence[dict[str, jax.Array]]) -> Values:
    """Means over the steps since the last report, and the loss of each quarter of t (q1: least noise).

    Skipped steps count in `skipped` and nowhere else.
    """
    stacked = {
        name: np.concatenate([np.atleast_1d(np.asarray(m[name], np.float64)) for m in metrics])
        for name in ("loss", "grad_norm", "nonfinite")
    }
    good = stacked["nonfinite"] == 0
    values = {"skipped": float((~good).sum())}
    if good.any():
        values |= {name: float(stacked[name][good].mean()) for name in ("loss", "grad_norm")}
    sums, counts = (
        np.concatenate([np.asarray(m[name], np.float64).reshape(-1, 4) for m in metrics])[good].sum(axis=0)
        for name in ("quarter_sum", "quarter_count")
    )
    return values | {f"loss_q{i + 1}": float(sums[i] / counts[i]) for i in range(4) if counts[i]}


def postfix(values: Values) -> str:
    """What the progress bar says after a log line. That the devices wait for images is said from 3 % of the time on."""
    waits = values.get("input_bound", 0.0)
    said = f"loss {values.get('loss', np.nan):.4f}, {values['images_per_second']:.0f} images/s"
    return said + (f", input-bound {waits:.0%}" if waits >= 0.03 else "")


def first_nonfinite(metrics: Sequence[dict[str, jax.Array]]) -> int | None:
    """How many steps into `metrics` the first one stands that wasn't finite; None if all were."""
    bad = np.concatenate([np.atleast_1d(np.asarray(m["nonfinite"])) for m in metrics])
    return int(np.argmax(bad)) if bad.any() else None


@contextlib.contextmanager
def open_log(workdir: files.Place, start: int) -> Iterator[tuple[Write, Push]]:
    """`write(step, values)`: a line of metrics.jsonl and a point in each TensorBoard curve. And `push()`, after which
    all that was written is in the run's folder: at once where that is of this machine, but see PUSH_EVERY for a bucket.

    The first process's write; those of the others do nothing. What an earlier run wrote past step `start` is dropped:
    those steps are about to be taken again.
    """
    if not processes.writes():
        yield lambda step, values: None, lambda: None
        return
    kept = [json.dumps(line) + "\n" for line in read(workdir) if line["step"] <= start]
    with _growing(workdir) as (folder, push):
        files.write(folder / "metrics.jsonl", "".join(kept).encode())
        with (
            (folder / "metrics.jsonl").open("a") as lines,
            contextlib.closing(SummaryWriter(str(folder), purge_step=start + 1)) as events,
        ):

            def write(step: int, values: Values) -> None:
                lines.write(json.dumps({"step": step} | values) + "\n")
                lines.flush()
                for name, value in values.items():
                    events.add_scalar(name, value, step)
                events.flush()
                push(PUSH_EVERY)

            yield write, push


@contextlib.contextmanager
def _growing(workdir: files.Place) -> Iterator[tuple[Path, Callable[..., None]]]:
    """A folder in which files can be appended to, and `push(age=0)`, which copies them to the run's if the last time is
    so many seconds ago.

    Nothing can be appended to in a bucket, and one object can be written about once a second: there the files grow in a
    folder of this machine and are copied whole. Elsewhere the two folders are one.
    """
    if not isinstance(workdir, epath.Path):
        yield workdir, lambda age=0.0: None
        return
    pushed: dict[str, int] = {}
    last = time.monotonic()

    def push(age: float = 0.0) -> None:
        nonlocal last
        if time.monotonic() - last < age:
            return
        for file in sorted(folder.iterdir()):
            content = file.read_bytes()
            if pushed.get(file.name) != len(content):
                files.write(workdir / file.name, content)
                pushed[file.name] = len(content)
        last = time.monotonic()

    with tempfile.TemporaryDirectory(prefix="ddpm_jax_") as name:
        folder = Path(name)
        try:
            yield folder, push
        finally:
            push()


def read(workdir: files.Place) -> list[Values]:
    """The lines of metrics.jsonl, of which a kill may have cut the last one short."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
