"""What a run says of itself: metrics.jsonl, TensorBoard events and the figures that go into both."""

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

from ddpm_jax import files
from ddpm_jax.diffusion import bins
from ddpm_jax.training import processes
from ddpm_jax.training.gradients import GradientStats

Values = dict[str, Any]
"""What a line says: numbers, each a curve in TensorBoard; lists stand in metrics.jsonl only. `evaluation` holds figures
by name, each {"value", "low", "high"}."""
Write = Callable[[int, Values], None]
Push = Callable[[], None]

PUSH_EVERY = 30.0
"""Seconds between two copies of a run's log to its bucket, each of all lines so far."""


def summary(metrics: Sequence[Mapping[str, Any]], edges: np.ndarray | None = None) -> Values:
    """Means over the steps since the last report, and the loss of each quarter of t (q1: least noise).

    With the edges of bins [n + 1] also the mean squared error of eps in each, named by the middle of the bin:
    "eps_error/log_snr_-7.30". Quarters and bins that no image fell in are left out.

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
    values |= _means(metrics, good, "quarter", [f"loss_q{i}" for i in (1, 2, 3, 4)])
    return values if edges is None else values | _means(metrics, good, "bin", bins.names("eps_error", edges))


def _means(metrics: Sequence[Mapping[str, Any]], good: np.ndarray, sort: str, names: Sequence[str]) -> Values:
    """The mean of each sort that there was something of, over the good steps."""
    sums, counts = (
        np.concatenate([np.asarray(m[name], np.float64).reshape(-1, len(names)) for m in metrics])[good].sum(axis=0)
        for name in (f"{sort}_sum", f"{sort}_count")
    )
    return {name: float(sums[i] / counts[i]) for i, name in enumerate(names) if counts[i]}


def of_gradients(found: GradientStats, edges: np.ndarray) -> Values:
    """Norm and noise of the gradient in each bin that has steps, named as the bins of `summary`; and, as lists, the
    cosines between the bins' gradients (null where one can't be told from noise) and the edges of the bins.
    """
    norm, noise, cosine = (np.asarray(values, np.float64) for values in (found.norm, found.noise, found.cosine))
    values: Values = {}
    for figure, sizes in (("grad_norm", norm), ("grad_noise", noise)):
        named = zip(bins.names(figure, edges), sizes, strict=True)
        values |= {name: float(size) for name, size in named if not np.isnan(size)}
    listed = [[None if np.isnan(value) else float(value) for value in row] for row in cosine]
    return values | {"grad_cosine": listed, "log_snr_edges": [float(edge) for edge in edges]}


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
                scalars = values | {f"evaluation/{name}": each["value"] for name, each in _figures(values).items()}
                for name, value in scalars.items():
                    if not isinstance(value, list | dict):
                        events.add_scalar(name, value, step)
                events.flush()
                push(PUSH_EVERY)

            yield write, push


def _figures(values: Values) -> dict[str, dict[str, float]]:
    return values.get("evaluation", {})


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
