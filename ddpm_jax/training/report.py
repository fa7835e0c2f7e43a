"""What a run says of itself: metrics.jsonl, TensorBoard events and the figures that go into both."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter

from ddpm_jax import files
from ddpm_jax.training import processes

Values = dict[str, float]


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


def first_nonfinite(metrics: Sequence[dict[str, jax.Array]]) -> int | None:
    """How many steps into `metrics` the first one stands that wasn't finite; None if all were."""
    bad = np.concatenate([np.atleast_1d(np.asarray(m["nonfinite"])) for m in metrics])
    return int(np.argmax(bad)) if bad.any() else None


@contextlib.contextmanager
def open_log(workdir: Path, start: int) -> Iterator[Callable[[int, Values], None]]:
    """`write(step, values)`: a line of metrics.jsonl and a point in each TensorBoard curve.

    The first process's writes; that of the others does nothing. What an earlier run wrote past step `start` is dropped:
    those steps are about to be taken again.
    """
    if not processes.writes():
        yield lambda step, values: None
        return
    path = workdir / "metrics.jsonl"
    kept = [json.dumps(line) + "\n" for line in read(workdir) if line["step"] <= start]
    files.write(path, "".join(kept).encode())
    with path.open("a") as lines, contextlib.closing(SummaryWriter(str(workdir), purge_step=start + 1)) as events:

        def write(step: int, values: Values) -> None:
            lines.write(json.dumps({"step": step} | values) + "\n")
            lines.flush()
            for name, value in values.items():
                events.add_scalar(name, value, step)
            events.flush()

        yield write


def read(workdir: Path) -> list[Values]:
    """The lines of metrics.jsonl, of which a kill may have cut the last one short."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
