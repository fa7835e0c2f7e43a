"""What the presets need of TPUs that aren't here: python benchmarks/scaling.py run|draw [--out FILE] (needs libtpu)

`run` compiles the training steps of CASES, of a weak-scaling series, 16 CIFAR-10 images a chip on 1 to 256 chips, and
of two presets on one chip by batch, each for its target, one after the other, and adds what is found to OUT; those that
are there already are left alone. `draw` makes docs/scaling.png and prints the tables. All times are estimates (see
`ddpm_jax.planning`).
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ddpm_jax.cli import flags
from ddpm_jax.figures import plots

HALF = {"net.dtype": "bfloat16"}
# name: (preset, target, chips or 0 for all, changes)
CASES = {
    "cifar10, v5e 2x2": ("cifar10", "v5e:2x2", 0, HALF),
    "cifar10, v6e 2x4": ("cifar10", "v6e:2x4", 0, HALF),
    "cifar10, v6e 2x4, fsdp 8": ("cifar10", "v6e:2x4", 0, HALF | {"devices.fsdp": 8}),
    "cifar10 in float32, v3-8, as Ho et al. 2020": ("cifar10", "v3:2x2", 0, {}),
    "celebahq256, v6e 8x8": ("celebahq256", "v6e:8x8", 0, HALF),
    "celebahq256, v5p 4x4x4, fsdp 8": ("celebahq256", "v5p:4x4x4", 0, HALF | {"devices.fsdp": 8}),
    "adm256, v5p 4x4x4, fsdp 8": ("adm256", "v5p:4x4x4", 0, {"devices.fsdp": 8}),
    "adm256, v6e 8x8, fsdp 8": ("adm256", "v6e:8x8", 0, {"devices.fsdp": 8}),
} | {
    f"weak scaling, {chips} chips": ("cifar10", f"v5e:{shape}", chips, HALF | {"batch_size": 16 * chips})
    for chips, shape in ((1, "2x2"), (4, "2x2"), (16, "4x4"), (64, "8x8"), (256, "16x16"))
}
BY_BATCH = {
    f"{preset} on one v5e chip, batch {size}": (preset, "v5e:2x2", 1, HALF | {"batch_size": size})
    for preset, sizes in {"cifar10": (32, 64, 128, 256, 512), "celebahq256": (4, 8, 16, 32)}.items()
    for size in sizes
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Plan the cases whose names hold `only`."""

    only: str = ""
    out: Path = Path("benchmarks/results/scaling.json")


def run(asked: Flags) -> None:
    """Plan what OUT lacks, each in a process of its own: a compiler that gives up takes no other with it."""
    for name, (preset, target, chips, changes) in (CASES | BY_BATCH).items():
        results = json.loads(asked.out.read_text()) if asked.out.exists() else {}
        if asked.only not in name or name in results:
            continue
        given = [word for key, value in changes.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        part = asked.out.with_suffix(".part")
        command = [sys.executable, "-m", "ddpm_jax.cli.plan", preset, "--target", target, "--chips", str(chips)]
        done = subprocess.run([*command, "--out", str(part), *given], check=False)
        if done.returncode:
            sys.exit(f"{name}: ended with status {done.returncode}")
        results[name] = json.loads(part.read_text())[0]
        asked.out.write_text(json.dumps(results, indent=1) + "\n")
        part.unlink()


def draw(asked: Flags) -> None:
    """docs/scaling.png: steps a second, utilisation and the share of exchanges by chips; all cases as two tables."""
    stored = json.loads(asked.out.read_text())
    print(*_by_batch({name: stored[name] for name in BY_BATCH if name in stored}), "", sep="\n")
    results = {name: stored[name] for name in CASES if name in stored}
    print("| case | batch | data x fsdp | GiB a device | ms | steps/s | MFU | limit | exchanges (MB) | compiled |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, found in results.items():
        sent = ", ".join(f"{e['count']} {e['kind']} {e['size'] / 1e6:.0f}" for e in found["exchanges"])
        mesh = " x ".join(map(str, found["mesh"].values()))
        times = "does not fit | - | - | -"
        if found["fits"]:
            times = f"{1e3 * found['seconds']:.1f} | {1 / found['seconds']:.0f} | {found['mfu']:.0%} | {found['limit']}"
        needs = "?" if found["peak"] is None else f"{found['peak'] / 2**30:.2f} of {found['memory'] / 2**30:.0f}"
        took = f"{found['compile_seconds']:.0f} s" if found["compile_seconds"] else ""
        print(f"| {name} | {found['batch_size']} | {mesh} | {needs} | {times} | {sent} | {took} |")
    series = [found for name, found in results.items() if name.startswith("weak scaling") and found["seconds"]]
    if not series:
        sys.exit(f"{asked.out} has no weak-scaling series yet")
    figure = Figure(figsize=(9, 3), layout="constrained")
    shown = {
        "steps/s": [1 / found["seconds"] for found in series],
        "share of the peak (MFU)": [found["mfu"] for found in series],
        "share of the step in exchanges": [found["link_seconds"] / found["seconds"] for found in series],
    }
    chips = [found["devices"] for found in series]
    for axes, (title, values) in zip(figure.subplots(1, 3), shown.items(), strict=True):
        axes.plot(chips, values, marker="o")
        axes.set_xscale("log", base=4)
        axes.set_xticks(chips, [str(n) for n in chips])
        axes.set_ylim(0, 1.15 * max(values))
        axes.set_xlabel("v5e chips, 16 images each")
        axes.set_title(title)
    plots.save(figure, Path("docs/scaling.png"))


def _by_batch(results: dict[str, dict[str, Any]]) -> list[str]:
    """A table: what a step takes on one chip, of that what goes where, and what it makes of the chip."""
    lines = ["| preset, images a chip | GiB | ms | of that arithmetic | waiting for memory | images/s | MFU | limit |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, found in results.items():
        case = name.replace(" on one v5e chip, batch", ",")
        if not found["fits"]:
            lines.append(f"| {case} | does not fit | - | - | - | - | - | - |")
            continue
        peak = f"{found['peak'] / 2**30:.2f}"
        took = [f"{1e3 * found[key]:.1f}" for key in ("seconds", "arithmetic_seconds", "memory_seconds")]
        rates = [f"{found['batch_size'] / found['seconds']:,.0f}", f"{found['mfu']:.0%}"]
        lines.append(f"| {' | '.join([case, peak, *took, *rates, found['limit']])} |")
    return lines


if __name__ == "__main__":
    action, *rest = sys.argv[1:] or ["help"]
    if action not in ("run", "draw"):
        sys.exit(__doc__)
    {"run": run, "draw": draw}[action](flags.parse(Flags, rest, prog=f"scaling.py {action}", default=Flags()))
