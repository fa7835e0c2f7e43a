"""Do the figures see damage? python benchmarks/damage.py [--source NAME] [--path DIR] [--num N] [--features NAME]

Measures held-out images, and held-out images that were damaged, against as many training images: with noise of several
levels, blurred, and one in eight of them eight times. What training images get against other training images is the
least that can be had. Writes a table (JSON and Markdown).
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpm_jax.cli import flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    source: str = "fashion_mnist"
    path: str = ""
    shape: tuple[int, int, int] = (28, 28, 1)
    num: int = 4000
    features: str = "efficientnet"
    out: Path = Path("benchmarks/results/damage.json")


def noised(level: float) -> Callable[[np.ndarray], np.ndarray]:
    """Normal noise of that deviation, in levels of 255."""

    def damage(images: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).normal(size=images.shape) * level
        return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)

    return damage


def blurred(images: np.ndarray) -> np.ndarray:
    """Means of squares of two by two pixels."""
    count, height, width, channels = images.shape
    means = images.reshape(count, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    return np.rint(means.repeat(2, 1).repeat(2, 2)).astype(np.uint8)


def repeated(images: np.ndarray) -> np.ndarray:
    """One in eight, eight times."""
    return np.repeat(images[: -(-len(images) // 8)], 8, axis=0)[: len(images)]


DAMAGES = {"noise 4": noised(4), "noise 8": noised(8), "noise 16": noised(16), "blur": blurred, "an eighth": repeated}


def main(args: list[str]) -> None:
    asked = flags.parse(Flags, args, prog="damage.py", default=Flags())
    from ddpm_jax import data
    from ddpm_jax.config import Data
    from ddpm_jax.evaluation import extracting, features, measures

    settings = Data(source=asked.source, path=asked.path, shape=asked.shape)
    train, test = data.load(settings), data.load(dataclasses.replace(settings, split="test"))
    order = np.random.default_rng(0).permutation(len(train))
    kind = features.build(asked.features)

    def found(images: np.ndarray) -> extracting.Extracted:
        return extracting.extract([kind], lambda rows: images[rows], len(images))[0]

    num = min(asked.num, len(test), len(train) // 2)
    reference = found(np.asarray(train.images[np.sort(order[:num])]))
    unseen = np.asarray(test.images[np.arange(num)])
    sets = {"other training images": np.asarray(train.images[np.sort(order[num : 2 * num])]), "test": unseen}
    sets |= {name: damage(unseen) for name, damage in DAMAGES.items()}
    rows = []
    for name, images in sets.items():
        begun = time.perf_counter()
        figures = measures.against_images(found(images), reference, None, name=kind.name)
        row = {"set": name, "seconds": time.perf_counter() - begun}
        row |= {each.name: dataclasses.asdict(each.estimate) for each in figures}
        rows.append(row)
        print(json.dumps({key: value["value"] if isinstance(value, dict) else value for key, value in row.items()}))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    plain = {"source": asked.source, "num": num, "features": kind.preprocessing, "rows": rows}
    asked.out.write_text(json.dumps(plain, indent=1) + "\n")
    print(table(rows))


def table(rows: list[dict]) -> str:
    """Markdown: a figure a line, a set a column; value and standard error."""
    names = [name for name in rows[0] if name not in ("set", "seconds")]
    lines = ["| | " + " | ".join(row["set"] for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for name in names:
        cells = [f"{row[name]['value']:.3g} +- {row[name]['standard_error'] or 0:.1g}" for row in rows]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    flags.run(main)
