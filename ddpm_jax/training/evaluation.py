"""How good a run's images are: every figure beside what held-out images get, written whole into the run's folder."""

import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax import data, files, records
from ddpm_jax.config import Classifier, Config, Data
from ddpm_jax.data.record import Column, Source
from ddpm_jax.evaluation import estimate, extracting, features, measures, probe, statistics
from ddpm_jax.evaluation.extracting import Found
from ddpm_jax.evaluation.features import Features
from ddpm_jax.evaluation.measures import Figure
from ddpm_jax.figures import pictures
from ddpm_jax.training import bits, evaluation_sets, guided, processes
from ddpm_jax.training.draw import way
from ddpm_jax.training.evaluation_sets import Drawer, Progress
from ddpm_jax.training.evaluation_task import QUICK, Task
from ddpm_jax.training.run import Parts
from ddpm_jax.training.state import State

FOLDER = "evaluation"
MOST = 10_000
FEW_PIXELS = 1024
"""In an image of which the pixels themselves are features worth a look."""
SURE = 0.9
SHOWN, NEIGHBOURS = 4, 5


def evaluate(
    parts: Parts,
    state: State,
    task: Task,
    workdir: files.Place,
    *,
    images: Column | None = None,
    sources: dict[str, Source] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measure, and write WORKDIR/evaluation/STEP_....json, and a picture of nearest neighbours; what the file says.

    Args:
        images: measure these, uint8 [N, H, W, C], in place of drawing any.
        sources: what `evaluation_sets.sources` gave, where the same sets are measured often.

    Raises:
        FileNotFoundError: for features, data or statistics that aren't there.
        ImportError: for features whose package isn't installed.
        ValueError: for what can't be measured, naming the flag.
    """
    begun = time.perf_counter()
    kinds = check(parts, task)
    stored = _statistics(task, kinds[0]) if task.reference else None
    sources = {} if stored else sources or evaluation_sets.sources(task.data, task.held_out)
    num = task.num or (min(MOST, len(sources["train"])) if sources else MOST)
    if images is not None:
        if tuple(images.shape[1:]) != tuple(task.data.shape):
            raise ValueError(f"--samples must be images of shape {task.data.shape}, got {tuple(images.shape[1:])}")
        num = min(task.num or len(images), len(images))
    settings = guided.within(task.sampling, workdir)
    name = _name(parts.config, int(state.step), task, kinds, num, images)
    folder, params = workdir / FOLDER, state.params if task.raw else state.ema
    by = Drawer(parts=parts, params=params, settings=settings, seed=task.seed, batch_size=task.batch_size)
    cache = folder / "cache" / f"{int(state.step)}_{evaluation_sets.mark(kinds, by.about() | {'num': num})}"
    again = by.images
    if images is None:
        samples = evaluation_sets.drawn(by, kinds, num, cache, progress)
    else:
        cache, again = folder / "cache" / name, evaluation_sets.reader(images, num)
        lots = evaluation_sets.in_lots(
            parts, kinds, again, num, task.batch_size, lambda done: progress("reading samples", done, num), cache
        )
        samples = extracting.join([*lots])
        processes.meet("all have what was read")
    nearest = None
    if stored:
        figures = measures.against_statistics(samples[0], stored, name=kinds[0].name)
        reference = {"what": task.reference, "num_images": stored.num_images}
    else:
        sets = {
            split: extracting.join(
                [
                    *evaluation_sets.of_source(
                        parts,
                        kinds,
                        f"{_said(task.data)} {split}",
                        source,
                        task.num_reference,
                        task.batch_size,
                        progress,
                        folder / "cache",
                    )
                ]
            )
            for split, source in sources.items()
        }
        reference = {"what": _said(task.data), "num_images": len(sets["train"][0].features)}
        reference |= {"of": len(sources["train"]), "held_out": len(sources.get("held_out", ()))}
        figures = [*_figures(kinds, samples, sets), *_sure(kinds, samples, sources, task)]
        nearest = _nearest(samples, sets["train"], sources["train"], task, again)
    if images is None:
        figures += _bits(parts, state, task, sources.get("held_out"), progress)
    result = {
        "step": int(state.step),
        "weights": "raw" if task.raw else "ema",
        "num_images": num,
        "seed": task.seed,
        "sampling": None if images is not None else records.to_dict(task.sampling),
        "quick": task.quick,
        "seconds": round(time.perf_counter() - begun, 1),
        "features": [
            {"name": each.name, "preprocessing": each.preprocessing, "dim": int(found.features.shape[1])}
            for each, found in zip(kinds, samples, strict=True)
        ],
        "reference": reference,
        "figures": [plain(figure) for figure in figures],
        "nearest": None if nearest is None else f"{name}_nearest.png",
        "file": f"{name}.json",
    }
    if processes.writes():
        if nearest is not None:
            pictures.save_png(folder / f"{name}_nearest.png", nearest)
        files.write(folder / f"{name}.json", (json.dumps(result, indent=1) + "\n").encode())
        if files.is_dir(cache):
            shutil.rmtree(cache) if isinstance(cache, Path) else cache.rmtree()
    processes.meet("the evaluation is written")
    return result


def _statistics(task: Task, kind: Features) -> statistics.Reference:
    """The file of statistics that is asked for, seen to be of these features before any image is drawn."""
    stored = statistics.read(task.reference)
    image = jax.ShapeDtypeStruct((1, *task.data.shape), np.uint8)
    measures.check_statistics(stored, kind.name, jax.eval_shape(kind.extract, image).features.shape[1])
    return stored


def write_reference(parts: Parts, task: Task, place: files.Place, progress: Progress) -> str:
    """Write the training images' mean and covariance, by the task's first features; in words what they are.

    Raises:
        ValueError: for a file that isn't to be an .npz, or what can't be measured.
    """
    files.suffix(place, [".npz"])
    [kind, *_] = check(parts, task)
    source = evaluation_sets.sources(task.data, "")["train"]
    where = (source, task.num_reference, task.batch_size, progress)
    moments = None
    for [found] in evaluation_sets.of_source(parts, [kind], _said(task.data), *where):
        moments = moments or statistics.empty(found.features.shape[1])
        moments = statistics.add(moments, np.asarray(found.features))
    if moments is None:
        raise ValueError(f"--data.split: {_said(task.data)} has no images")
    if processes.writes():
        statistics.write(place, moments, features=kind.name)
    processes.meet("the statistics are written")
    return f"{kind.name} of {moments.count:,} images, {_said(task.data)}"


def best(result: dict[str, Any]) -> float:
    """The figure by which checkpoints are compared, lower is better: the first one's."""
    return float(result["figures"][0]["value"])


def brief(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a line of metrics.jsonl says of it."""
    return {each["name"]: {key: each[key] for key in ("value", "low", "high")} for each in result["figures"]}


def plain(figure: Figure) -> dict[str, Any]:
    """As JSON."""
    floor = None if figure.floor is None else {"what": "held-out images", **vars(figure.floor)}
    said = {"name": figure.name, **vars(figure.estimate), "better": figure.better, "num_images": figure.num_images}
    return said | {"floor": floor}


def check(parts: Parts, task: Task) -> list[Features]:
    """The features, once all that can be is seen to be right.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `evaluate`.
    """
    if isinstance(parts.config.net, Classifier):
        raise ValueError("this run's network is a classifier, which draws no images")
    for flag, value, least in (
        ("--num", task.num, 0),
        ("--num-t", task.num_t, 0),
        ("--num-reference", task.num_reference, 2),
        ("--batch-size", task.batch_size, 1),
    ):
        if value < least:
            raise ValueError(f"{flag} must be at least {least}, got {value}")
    way(parts, task.sampling, under="--")
    small = int(np.prod(task.data.shape)) <= FEW_PIXELS
    named = task.features or (("efficientnet", "pixels") if small and not task.reference else ("efficientnet",))
    kinds = [features.build(name) for name in named]
    if task.reference and len(kinds) > 1:
        raise ValueError(f"--reference holds statistics of one kind of features, got {len(kinds)} --features")
    return kinds


def _name(config: Config, step: int, task: Task, kinds: Sequence[Features], num: int, images: Column | None) -> str:
    """What a measurement's files are called: another name for every other measurement."""
    given = "" if images is None else evaluation_sets.digest(images)
    about = {"step": step, "num": num, "task": records.to_dict(task), "given": given, "seed": config.seed}
    words = [str(step), "quick" if task.quick else "", "raw" if task.raw else "", "samples" if given else ""]
    words += [re.sub(r"[^A-Za-z0-9@.]+", "-", each.name) for each in kinds]
    return "_".join([*filter(None, words), evaluation_sets.mark(kinds, about)[:6]])


def _said(settings: Data) -> str:
    return " ".join(filter(None, [settings.source, settings.name, settings.path, settings.split]))


def _figures(kinds: Sequence[Features], samples: Found, sets: dict[str, Found]) -> Iterator[Figure]:
    for i, each in enumerate(kinds):
        held_out = sets["held_out"][i] if "held_out" in sets else None
        yield from measures.against_images(samples[i], sets["train"][i], held_out, name=each.name)


def _sure(kinds: Sequence[Features], samples: Found, sources: dict[str, Source], task: Task) -> Iterator[Figure]:
    """How often a linear classifier of real images' pixels is sure of a sample's class."""
    names = [each.name for each in kinds]
    train, held_out = sources["train"], sources.get("held_out")
    if "pixels" not in names or train.labels is None or np.prod(task.data.shape) > FEW_PIXELS:
        return
    most = min(MOST, task.num_reference)
    rows = evaluation_sets.rows_of(train, most)
    labels = np.asarray(train.labels[rows])
    if len(np.unique(labels)) < 2:
        return
    sure = probe.fit(data.to_float(np.asarray(train.images[rows])), labels, SURE)

    def share(images: np.ndarray) -> estimate.Estimate:
        found = sure(images).fraction
        error = (found * (1 - found) / len(images)) ** 0.5
        return estimate.share(found, len(images), error, f"binomial of {len(images):,} images, classifier as it is")

    drawn = np.asarray(samples[names.index("pixels")].features).reshape(-1, *task.data.shape)
    floor = None
    if held_out is not None:
        floor = share(data.to_float(np.asarray(held_out.images[evaluation_sets.rows_of(held_out, most)])))
    yield Figure(name=f"sure (p >= {SURE})", estimate=share(drawn), better="", num_images=len(drawn), floor=floor)


def _bits(parts: Parts, state: State, task: Task, held_out: Source | None, progress: Progress) -> list[Figure]:
    """The bound of held-out images: how well the network knows them, which no sampler changes."""
    if held_out is None or not task.num_t or bits.boundless(parts.config) or len(held_out) < 2:
        return []
    rows = evaluation_sets.rows_of(held_out, QUICK // 4 if task.quick else MOST)
    per_batch, how, _ = bits.bound(parts, state, seed=task.seed, num_t=task.num_t)
    found = bits.over(
        per_batch,
        parts,
        state.params if task.raw else state.ema,
        held_out,
        len(rows),
        rows=rows,
        batch_size=task.batch_size,
        on_batch=lambda done: progress("bits/dim", done, len(rows)),
    )
    value = estimate.interval(found.bits_per_dim, found.standard_error, f"bound, {how}; over images")
    return [Figure(name="bits/dim of held-out images", estimate=value, better="lower", num_images=len(rows))]


def _nearest(samples: Found, train: Found, source: Source, task: Task, again: Any) -> np.ndarray:
    """Samples, each beside the training images nearest to it by the first features: some, and those nearest of all."""
    count = min(NEIGHBOURS, len(train[0].features))
    found = measures.neighbours(samples[0], train[0], count=count)
    closest = np.argsort(found.distances[:, 0], kind="stable")
    some = list(dict.fromkeys([*range(min(SHOWN, len(closest))), *closest[:SHOWN].tolist()]))
    rows = evaluation_sets.rows_of(source, task.num_reference)
    real = np.asarray(source.images[np.sort(np.unique(rows[found.indices[some]]))])
    where = {row: i for i, row in enumerate(np.sort(np.unique(rows[found.indices[some]])))}
    images = again(np.array(some))
    lines = [
        np.stack([image, *(real[where[row]] for row in rows[found.indices[i]])])
        for i, image in zip(some, images, strict=True)
    ]
    return pictures.strip(
        np.stack(lines),
        titles=["sample", *(f"nearest {k + 1}" for k in range(count))],
        labels=[f"#{i}: {found.distances[i, 0]:.3g}" for i in some],
    )
