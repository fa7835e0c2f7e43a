"""What more work costs: python benchmarks/growth.py [SERIES ...] [--quick]

Time and peak memory of a small network's training step by batch, resolution and width, of sampling by its steps, and of
reading images by the size of the set; each with the exponent that it grows with. Every point is a process of its own,
so that its peak is nobody else's. Writes benchmarks/results/growth.json, series by series, and docs/growth.png.

The network is that of `mnist5k` on images of 32x32. Memory is what a process holds beyond its start and its programs.
"""

import dataclasses
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax_side
import machine
import numpy as np
import sides
import tyro

from ddpm_jax import records
from ddpm_jax.cli import flags
from ddpm_jax.config import Config, Data, Sampling

SIDE = 32
SMALL_BATCH = 4
"""Of the series by resolution and width, whose largest points are large enough."""
DRAWN = 128
"""Images to a batch that is read."""
LEAST = 2.0
"""Seconds that a point's repetitions take at least; and there are at least three, but for long ones."""

Point = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """What is measured against what."""

    values: tuple[int, ...]
    label: str
    title: str
    measure: Callable[[int], Point]


def small(**changes: Any) -> Config:
    """The preset with the size of images that all points have unless it is what grows."""
    config = flags.load_preset("mnist5k")
    shape = (changes.pop("side", SIDE),) * 2 + (1,)
    net: Any = config.net
    net = dataclasses.replace(net, features=changes.pop("width", net.features))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, shape=shape), net=net, **changes)


def training(config: Config) -> Point:
    """A training step, on random images: seconds, and the most bytes that it needed with its state."""
    import jax

    from ddpm_jax import heap
    from ddpm_jax.data import Batch
    from ddpm_jax.training import mesh
    from ddpm_jax.training.run import abstract_arguments, build, make_train_step, training_key

    heap.keep()
    parts = build(config, devices=jax.devices()[:1])
    made: Any = make_train_step(parts)
    step = made.trace(*abstract_arguments(parts)).lower().compile()
    box: list[Any] = [parts.init()]
    images = np.random.default_rng(0).uniform(-1, 1, (config.batch_size, *config.data.shape)).astype(np.float32)
    batch, key = mesh.place(Batch(images=images, labels=None), mesh.split(parts.mesh)), training_key(config)
    held = sum(x.nbytes for x in jax.tree.leaves((box[0], batch.images)))
    before = start() - held

    def once() -> None:
        box[0], metrics = step(box[0], batch, key)
        jax.block_until_ready((box[0], metrics))

    return timed(once) | {"memory": memory(before), "planned": jax_side.planned(step)["all"]}


def sampling(steps: int) -> Point:
    """DDIM from noise to four images, in one dispatch."""
    import jax
    import jax.numpy as jnp

    from ddpm_jax import planning

    config = small(batch_size=SMALL_BATCH, sampling=Sampling(sampler="ddim", steps=(steps,)))
    target = planning.find("cpu:1")
    parts = planning.check(config, target)
    program = planning.compile_sampler(parts, target)
    params = parts.init().params
    before = start() - sum(x.nbytes for x in jax.tree.leaves(params))
    numbers, key = jnp.arange(SMALL_BATCH, dtype=jnp.int32), jax.random.key(0)
    found = timed(lambda: jax.block_until_ready(program(params, key, numbers, None)))
    return found | {"memory": memory(before), "planned": jax_side.planned(program)["all"]}


def reading(images: int) -> Point:
    """A mapped file of so many images: seconds to open it, to shuffle an epoch, and to draw a batch of it."""
    from ddpm_jax import data

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.lib.format.open_memmap(file, "w+", np.uint8, (images, 8, 8, 1)).flush()  # a hole: it takes no room
        before, begun = own(), time.perf_counter()
        source = data.load(Data(source="array", path=str(file), shape=(8, 8, 1)))
        opened, steps = time.perf_counter(), itertools.count(1)
        drawn = {"seed": 0, "batch_size": DRAWN, "flip": True}
        data.batch_at(source, step=0, **drawn)
        first = time.perf_counter()
        found = timed(lambda: data.batch_at(source, step=next(steps) % max(1, images // DRAWN), **drawn), least=1.0)
    return found | {"open": opened - begun, "epoch": first - opened, "memory": own() - before}


def start() -> int:
    """Bytes that this process holds now; its peak is counted from here on, by `memory`."""
    machine.forget_peak()
    return machine.resident()["now"]


def memory(before: int) -> float:
    return machine.resident()["peak"] - before


def own() -> float:
    """Bytes that this process holds, but for mapped files, which the system may take back; nan where it can't say."""
    return machine.resident().get("own", math.nan)


def timed(once: Callable[[], Any], least: float = LEAST) -> Point:
    """Median seconds of several calls; the first counts only if it takes longer than all others should."""
    taken: list[float] = []
    while len(taken) < 4 or sum(taken[1:]) < least:
        begun = time.perf_counter()
        once()
        taken.append(time.perf_counter() - begun)
        if sum(taken) > 4 * least:
            break
    kept = taken[1:] or taken
    return {"seconds": statistics.median(kept), "times": len(kept)}


def exponent(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The slope p of log y = p log x + c by least squares on the upper half of the range, where constants count least.

    Of x's range in logarithms that is, its middle included; of fewer than three points there, the last three. Returned
    with its standard error and the first and last x that were used.

    Raises:
        ValueError: for fewer than three points.
    """
    if len(x) < 3:
        raise ValueError(f"an exponent needs at least 3 points, got {len(x)}")
    logs = np.log(np.asarray(x, np.float64)), np.log(np.asarray(y, np.float64))
    upper = logs[0] >= (logs[0][0] + logs[0][-1]) / 2 - 1e-9
    upper |= np.arange(len(x)) >= len(x) - 3
    u, v = (each[upper] - each[upper].mean() for each in logs)
    slope = float(u @ v / (u @ u))
    error = math.sqrt(float((v - slope * u) @ (v - slope * u)) / (len(u) - 2) / float(u @ u))
    used = np.asarray(x, np.float64)[upper]
    return {"exponent": slope, "error": error, "from": float(used[0]), "to": float(used[-1])}


SERIES = {
    "batch": Series(
        values=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        label="images to a batch",
        title="training step",
        measure=lambda n: training(small(batch_size=n)),
    ),
    "resolution": Series(
        values=(8, 16, 32, 64),
        label="pixels a side",
        title=f"training step, {SMALL_BATCH} images",
        measure=lambda n: training(small(batch_size=SMALL_BATCH, side=n)),
    ),
    "width": Series(
        values=(32, 64, 128, 256),
        label="channels of the first level",
        title=f"training step, {SMALL_BATCH} images",
        measure=lambda n: training(small(batch_size=SMALL_BATCH, width=n)),
    ),
    "steps": Series(
        values=(10, 30, 100, 300, 1000), label="steps", title=f"sampling, {SMALL_BATCH} images", measure=sampling
    ),
    "images": Series(
        values=(1000, 10_000, 100_000, 1_000_000, 10_000_000),
        label="images in the set",
        title=f"a batch of {DRAWN}, read",
        measure=reading,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Measure these series."""

    series: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """batch, resolution, width, steps, images; all if not given."""
    quick: bool = False
    """Leave out the last third of the points, which take most of it."""
    out: Path = Path("benchmarks/results/growth.json")
    picture: Path = Path("docs/growth.png")


def main(args: list[str]) -> None:
    if args[:1] == ["point"]:  # a process of its own
        print(json.dumps(SERIES[args[1]].measure(int(args[2]))))
        return
    asked = flags.parse(Flags, args, prog="growth.py", default=Flags())
    about = machine.describe()
    for name in asked.series or SERIES:
        series = records.pick(SERIES, name, "SERIES")
        values = series.values[: math.ceil(len(series.values) * 2 / 3)] if asked.quick else series.values
        points = [{"x": x, **point(name, x)} for x in values]
        fits = fitted(points)
        print(f"{name}: " + ", ".join(f"{what} ^ {fit['exponent']:.2f}" for what, fit in fits.items()), flush=True)
        found = {"label": series.label, "title": series.title, "points": points, "fits": fits}
        sides.keep(asked.out, about, {name: found}, {"quick": asked.quick})
    draw(json.loads(asked.out.read_text()), asked.picture)


def point(name: str, x: int) -> Point:
    """One point, measured in a process of its own."""
    command = [sys.executable, __file__, "point", name, str(x)]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        sys.exit(f"{name} {x}: {said[-1]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    values = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
    print(f"{name} {x}: {values} ({time.perf_counter() - begun:.0f} s)", flush=True)
    return found


def fitted(points: Sequence[Point]) -> dict[str, dict[str, float]]:
    """The exponent of everything that was measured at every point."""
    if len(points) < 3:
        return {}
    x = [each["x"] for each in points]
    names = [key for key in points[0] if key not in ("x", "times") and min(each[key] for each in points) > 0]
    return {name: exponent(x, [each[name] for each in points]) for name in names}


def draw(found: dict[str, Any], place: Path) -> None:
    """Seconds above and memory below, each series a column, with the lines that were fitted."""
    from matplotlib.figure import Figure

    from ddpm_jax.figures import plots, style

    names = [name for name in SERIES if name in found]
    figure = Figure(figsize=(3.2 * len(names), 5.6), layout="constrained")
    rows = figure.subplots(2, len(names), squeeze=False)
    rows[0, 0].set_ylabel("seconds")
    rows[1, 0].set_ylabel("peak memory, MB")
    for name, seconds, megabytes in zip(names, *rows, strict=True):
        series = found[name]
        _plot(seconds, series, "seconds", "C0", "a batch: " if "epoch" in series["points"][0] else "")
        if "epoch" in series["points"][0]:
            _plot(seconds, series, "epoch", "C1", "an epoch's order: ")
        _plot(megabytes, series, "memory", "C0", "", scale=1e-6)
        for axes, title in ((seconds, series["title"]), (megabytes, "")):
            style.dress(axes, title, log=True, xlabel=series["label"])
            _along(axes, [point["x"] for point in series["points"]])
            axes.legend(frameon=False, fontsize="small")
    plots.save(figure, place)


def _along(axes: Any, values: Sequence[int]) -> None:
    """Ticks at what was measured, unless that goes over many decades; what hardly changes begins at 0."""
    axes.set_xscale("log")
    if values[-1] < 1000 * values[0]:
        axes.set_xticks(ticks := values[:: 1 + len(values) // 6], [str(value) for value in ticks])
        axes.minorticks_off()
    axes.set_ylim(bottom=0 if axes.get_yscale() == "linear" else None)


def _plot(axes: Any, series: dict[str, Any], key: str, color: str, name: str, scale: float = 1.0) -> None:
    """Points of one kind, and the line through those that it was fitted to."""
    x, y = np.array([[point["x"], scale * point[key]] for point in series["points"]]).T
    axes.plot(x, y, "o", color=color, markersize=4)
    if fit := series["fits"].get(key):
        used = (fit["from"] <= x) & (x <= fit["to"])
        line = np.exp(np.log(y[used]).mean() + fit["exponent"] * (np.log(x) - np.log(x[used]).mean()))
        axes.plot(x[used], line[used], "-", lw=1, color=color, label=f"{name}exponent {fit['exponent']:.2f}")


if __name__ == "__main__":
    flags.run(main)
