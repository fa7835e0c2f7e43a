"""How fast images arrive: python benchmarks/data.py [--cases NAME ...] [--rounds N] (needs '.[bench]')

The ways in which this project brings a set of uint8 images to the device, against PyTorch's DataLoader on the same
set, in memory or mapped from a file: in a random order, mirrored by chance, scaled to [-1, 1], float32 [B, H, W, C].
Each way is a process of its own, and they take turns (see sides.py). Writes benchmarks/results/data.json, case by case.

    stream            what train.py does by default: threads read, the device scales
    stream-workers    the same with two worker processes (--data.workers 2), from a file only
    resident          the whole set on the device (--data.on-device)
    host              no device: data.batches
    torch-N           TensorDataset, N worker processes, image by image, a batch mirrored and scaled at once
    torch-batched-N   a dataset that answers a whole batch at once (__getitems__), with N worker processes
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
import sides

from ddpm_jax import records
from ddpm_jax.cli import flags

OURS = {
    "stream": {},
    "stream-workers": {"workers": 2},
    "resident": {"on_device": True},
    "host": {},
}
TORCH = {
    "torch-0": (0, False),
    "torch-2": (2, False),
    "torch-batched-0": (0, True),
    "torch-batched-2": (2, True),
}
# case: (mapped?, images to a batch)
CASES = {f"{place}, batch {size}": (place == "mapped", size) for place in ("in memory", "mapped") for size in (32, 128)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Measure these cases."""

    cases: tuple[str, ...] = tuple(CASES)
    rounds: int = 7
    images: int = 50_000
    shape: tuple[int, int, int] = (32, 32, 3)
    threads: int = 0
    """Cores of each side; all of this machine's for 0."""
    out: Path = Path("benchmarks/results/data.json")


def ours(name: str, file: str, mapped: bool, batch_size: int) -> Generator[Any, None, None]:
    """Our batches, one after the other, each there when it is handed out."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from ddpm_jax import data
    from ddpm_jax.config import Data
    from ddpm_jax.training import feed, mesh

    images = np.load(file, mmap_mode="r" if mapped else None)
    source = data.Source(images=images)
    if name == "host":
        yield from data.batches(source, seed=0, batch_size=batch_size, flip=True)
        return
    settings = Data(source="array", shape=images.shape[1:], flip=True, **OURS[name])
    one = mesh.make_mesh(devices=jax.devices()[:1])
    with feed.open_stream(source, settings, mesh=one, batch_size=batch_size) as stream:
        while True:
            yield jax.block_until_ready(stream.finish(next(stream.sent)))


def theirs(name: str, file: str, mapped: bool, batch_size: int) -> Generator[Any, None, None]:
    """PyTorch's batches, epoch after epoch."""
    import torch
    from torch.utils.data import DataLoader, Dataset, TensorDataset

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    workers, batched = TORCH[name]
    # PyTorch warns of arrays that can't be written: mapped for copying, they can.
    images = torch.from_numpy(np.load(file, mmap_mode="c" if mapped else None))

    def finish(batch: torch.Tensor) -> torch.Tensor:
        mirrored = torch.rand(len(batch), 1, 1, 1) < 0.5
        return torch.where(mirrored, batch.flip(2), batch).float().div_(127.5).sub_(1)

    class Whole(Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitems__(self, indices: list[int]) -> torch.Tensor:
            return finish(images[torch.tensor(indices)])

    def collate(items: Sequence[Any]) -> torch.Tensor:
        return finish(torch.stack([item[0] for item in items]))

    loader = DataLoader(
        Whole() if batched else TensorDataset(images),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=(lambda batch: batch) if batched else collate,
    )
    while True:
        yield from loader


def side(job: dict[str, Any]) -> None:
    """A way's process: it answers "go N" by the seconds of one of N batches."""
    sides.pin(job["threads"])
    begun = machine.resident()
    make = ours if job["name"] in OURS else theirs
    coming = make(job["name"], job["file"], job["mapped"], job["batch_size"])
    shape = list(next(coming).images.shape if job["name"] in OURS else next(coming).shape)
    timed = sides.repeated(lambda: next(coming) is None)

    def go(argument: str) -> dict[str, Any]:
        for _ in range(job["ready"]):  # those that were made while the others worked
            next(coming)
        return timed(argument)

    with contextlib.closing(coming):
        sides.serve({"shape": shape, "before": begun}, {"go": go, "memory": lambda _: machine.resident()})


def measure(case: str, file: Path, asked: Flags) -> dict[str, Any]:
    """All ways of one case in turn: seconds of a batch, images a second, and ours over PyTorch's best."""
    mapped, batch_size = records.pick(CASES, case, "--cases")
    # From memory every worker would get a copy; and a set on the device is in memory first.
    names = [name for name in (*OURS, *TORCH) if name != ("resident" if mapped else "stream-workers")]
    job = {"file": str(file), "mapped": mapped, "batch_size": batch_size, "ready": 16}
    job |= {"threads": asked.threads or sides.cores()}
    with contextlib.ExitStack() as running:
        started = []
        for name in names:
            started.append(sides.launch(name, [__file__, "side", json.dumps({**job, "name": name})]))
            running.callback(started[-1].end)
        seconds = sides.turns(started, rounds=asked.rounds)
        resident = {each.name: each.ask("memory") for each in started}
    fastest = min(TORCH, key=lambda name: sides.spread(seconds[name])["median"])
    spreads = {name: sides.spread(taken) for name, taken in seconds.items()}
    return {
        "images": asked.images,
        "shape": asked.shape,
        "seconds": spreads,
        "rounds": seconds,
        "images_per_second": {name: batch_size / found["median"] for name, found in spreads.items()},
        "best_of_torch": fastest,
        "over_best": {name: sides.paired(seconds[name], seconds[fastest]) for name in names if name in OURS},
        "over": {
            name: {other: sides.paired(seconds[name], seconds[other]) for other in TORCH}
            for name in names
            if name in OURS
        },
        "resident": resident,
    }


def said(case: str, found: dict[str, Any]) -> str:
    """A case as lines for a terminal."""
    lines = [case]
    for name, rate in found["images_per_second"].items():
        line = f"  {name:18}{rate:12,.0f} images/s"
        if ratio := found["over_best"].get(name):
            line += f"   {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) of {found['best_of_torch']}"
        lines.append(line)
    return "\n".join(lines)


def main(args: list[str]) -> None:
    if args[:1] == ["side"]:
        side(json.loads(args[1]))
        return
    asked = flags.parse(Flags, args, prog="data.py", default=Flags())
    for case in asked.cases:
        records.pick(CASES, case, "--cases")
    if importlib.util.find_spec("torch") is None:
        raise ImportError("benchmarks/data.py needs torch: pip install -e '.[bench]'")
    about = machine.describe()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, np.random.default_rng(0).integers(0, 256, (asked.images, *asked.shape), np.uint8))
        for case in asked.cases:
            found = measure(case, file, asked)
            print(said(case, found), flush=True)
            sides.keep(asked.out, about, {case: found}, {"rounds": asked.rounds, "threads": asked.threads})


if __name__ == "__main__":
    flags.run(main)
