"""Know before you rent: python -m ddpm_jax.cli.plan PRESET --target v5e:16x16 [--sweep.fsdp 1 8 ...] (see --help).

Compiles the training step of a preset, or of a run's folder, ahead of time for machines that aren't there, and prints
what it needs of each device: memory, arithmetic, exchanges, and an estimate of its speed. TPUs need
pip install 'ddpm_jax[tpu]', GPUs pip install 'ddpm_jax[cuda]'; neither needs the machine. All times are estimates: see
docs/pods.md for what they were checked against.
"""

import dataclasses
import itertools
import json
import math
import sys
from typing import Annotated, Any

import tyro

from ddpm_jax import files, records
from ddpm_jax.cli import flags
from ddpm_jax.config import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Plan every combination of these, and mark the fastest that fits; empty for the config's own value."""

    batch_size: tuple[int, ...] = ()
    fsdp: tuple[int, ...] = ()
    accumulate: tuple[int, ...] = ()
    remat: tuple[str, ...] = ()
    dtype: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Plan a run."""

    target: tuple[str, ...] = ("v5e:2x2",)
    """Where: v5e:4x4, 2*v6e:16x16 (two slices), v5p:4x4x4, h100:8, h100:4x8 (four hosts), cpu:8."""
    chips: int = 0
    """Use only so many chips of each target; 0 for all."""
    sampler: bool = False
    """Plan the sampling of a batch, rather than a step of training."""
    effort: float = -1.0
    """XLA's effort for TPUs: -1 compiles in minutes, 0 as well as on the TPU itself, perhaps for hours."""
    input: bool = True
    """Also measure how many images a second the input pipeline brings on this machine, if the data is here."""
    save: flags.Place | None = None
    """Write the compiled step here, for train.py --program; for a target of this very kind."""
    out: flags.Place | None = None
    """Also write all figures to this .json."""
    sweep: Sweep = Sweep()
    config: Annotated[Config, tyro.conf.arg(name="")] = Config()


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print("python -m ddpm_jax.cli.plan PRESET|WORKDIR --target v5e:4x4 [--batch-size B] [--devices.fsdp N] ...")
        sys.exit(0)
    config = flags.starting_config(args[0])[1]
    asked = flags.parse(Flags, args[1:], prog=f"plan {args[0]}", default=Flags(config=config))
    configs = list(_combinations(asked))
    if asked.save is not None and (len(configs) * len(asked.target) > 1 or asked.sampler):
        raise ValueError("--save keeps one training step: give one --target, no --sweep and no --sampler")
    if not -1 <= asked.effort <= 1:
        raise ValueError(f"--effort must lie in -1 .. 1, got {asked.effort}")
    from ddpm_jax import planning

    planning.prepare(list(asked.target))
    # One step to a dispatch, unless it is to be run: a loop's body would be counted once.
    counted = configs if asked.save else [dataclasses.replace(config, run=_single(config)) for config in configs]
    pairs = [(config, planning.find(name, chips=asked.chips)) for name in asked.target for config in counted]
    for pair in pairs:
        planning.check(*pair)  # before the first compiles: that takes minutes
    brings = _input(asked.config) if asked.input and not asked.sampler else "not measured"
    rows: list[tuple[Config, Any, Any]] = []
    for config, target in pairs:
        plan, program = planning.plan(config, target, draws=asked.sampler, effort=asked.effort)
        rows.append((config, target, plan))
        print("\n".join(_lines(args[0], config, target, plan, brings, asked.sampler)), flush=True)
        if asked.out is not None:
            found = [_plain(*row) for row in rows]
            files.write(asked.out, (json.dumps(found, indent=1) + "\n").encode())
        if asked.save is not None:
            if program is None:
                raise ValueError(f"--save: there is nothing to write into {asked.save}, for the step does not fit")
            planning.save(program, config, target, asked.save)
            print(f"wrote {asked.save}: python train.py {args[0]} ... --program {asked.save}")
    if len(rows) > 1:
        print("\n".join(_table(rows)))


def _single(config: Config) -> Any:
    return dataclasses.replace(config.run, steps_per_dispatch=1)


def _combinations(asked: Flags) -> Any:
    """The config, once for each combination that is swept."""
    config, sweep = asked.config, asked.sweep
    sizes = sweep.batch_size or (config.batch_size,)
    shares = sweep.fsdp or (config.devices.fsdp,)
    parts = sweep.accumulate or (config.devices.accumulate,)
    if sweep.remat and not hasattr(config.net, "remat"):
        raise ValueError(f"--sweep.remat: {type(config.net).__name__} has no remat")
    remats = sweep.remat or (getattr(config.net, "remat", ""),)
    for size, share, part, remat, dtype in itertools.product(
        sizes, shares, parts, remats, sweep.dtype or (config.net.dtype,)
    ):
        net = dataclasses.replace(config.net, dtype=dtype, **({"remat": remat} if remat else {}))
        devices = dataclasses.replace(config.devices, fsdp=share, accumulate=part)
        yield dataclasses.replace(config, batch_size=size, net=net, devices=devices)


def _lines(name: str, config: Config, target: Any, plan: Any, brings: str, draws: bool) -> list[str]:
    """What is said of one plan."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    remat = getattr(config.net, "remat", "none")
    title = f"{name}{': sampling' if draws else ''} on {target.name}, {mesh}, batch {plan.batch_size}"
    lines = [f"{title}, {config.net.dtype}" + (f", remat {remat}" if remat != "none" else "")]
    state = f"parameters {_bytes(plan.params)}, average {_bytes(plan.ema)}, optimizer {_bytes(plan.opt_state)}"
    if plan.refusal:
        needs = f"it takes {_bytes(plan.peak)}" if math.isfinite(plan.peak) else plan.refusal
        return [*lines, f"  memory     does not fit: {needs} of {_bytes(plan.memory)} a device; {state}"]
    by = _bytes(abs(plan.memory - plan.peak))
    verdict = {True: f"fits, {by} to spare", False: f"does not fit, {by} too much"}[plan.fits]
    of = f" of {_bytes(plan.memory)}: {verdict}" if math.isfinite(plan.memory) else ""
    lines.append(f"  memory     {_bytes(plan.peak)}{of}")
    lines.append(f"             {state}, activations and the rest {_bytes(plan.activations)}")
    work = f"{plan.model_flops / 1e9:.1f} GFLOP of the model"
    if math.isfinite(plan.flops):
        work += f", {plan.flops / 1e9:.1f} as compiled, {_bytes(plan.bytes_accessed)} to and from memory"
    lines.append(f"  work       {work}")
    lines += [
        f"  exchanges  {each.count} {each.kind} among {each.group}: {_bytes(each.size)}" for each in plan.exchanges
    ] or ["  exchanges  none"]
    if moved := plan.foreign():
        lines.append(f"             {' and '.join(moved)} move activations: another --devices.fsdp may not")
    if math.isfinite(plan.seconds):
        compute, links = 1e3 * plan.compute_seconds, 1e3 * plan.link_seconds
        times, rate = f"{compute:.2f} ms (compiler) + {links:.2f} ms (exchanges at best)", 1 / plan.seconds
        each = "batches/s" if draws else "steps/s"
        lines.append(f"  estimate   {times}: {rate:.1f} {each}, {plan.utilisation(target):.0%} of the peak (MFU)")
        shares = [f"{name} {seconds / plan.seconds:.0%}" for name, seconds in plan.takes(target).items()]
        lines.append(f"  limit      {plan.limit(target)}: {', '.join(shares)}")
        if not draws:
            lines.append(f"  the run    {config.steps:,} steps in {config.steps * plan.seconds / 3600:.1f} hours")
            needed = f"{plan.batch_size * rate / target.hosts:,.0f} images/s"
            each = f"each of {target.hosts} hosts needs" if target.hosts > 1 else "needs"
            lines.append(f"  input      {each} {needed}; this machine's pipeline: {brings}")
    else:
        lines.append("  estimate   none: the compiler makes none for this target, or the network's speed isn't known")
    return [*lines, f"  compiled   in {plan.compile_seconds:.0f} s"]


def _table(rows: list[tuple[Config, Any, Any]]) -> list[str]:
    """One line a plan; the one that takes least time an image, of those that fit, is marked."""
    good = [plan for _, _, plan in rows if plan.fits and math.isfinite(plan.seconds)]
    best = min(good, key=lambda plan: plan.seconds / plan.batch_size, default=None)
    lines = [
        f"{'target':16} {'batch':>6} {'fsdp':>5} {'parts':>5} {'remat':10} {'dtype':9} {'memory':>10} {'images/s':>9} "
        f"{'MFU':>4} {'limit':10}"
    ]
    for config, target, plan in rows:
        known = math.isfinite(plan.seconds)
        rate = f"{plan.batch_size / plan.seconds:,.0f}" if known else "?"
        share = f"{plan.utilisation(target):.0%}" if known else "?"
        mark = "<- fastest that fits" if plan is best else "" if plan.fits else "does not fit"
        lines.append(
            f"{target.name:16} {plan.batch_size:6} {config.devices.fsdp:5} {config.devices.accumulate:5} "
            f"{getattr(config.net, 'remat', ''):10} {config.net.dtype:9} {_bytes(plan.peak):>10} {rate:>9} {share:>4} "
            f"{plan.limit(target):10} {mark}"
        )
    return lines


def _plain(config: Config, target: Any, plan: Any) -> dict[str, Any]:
    """All figures of a plan, for a .json."""
    exchanges = [dataclasses.asdict(each) for each in plan.exchanges]
    derived = {"activations": plan.activations, "seconds": plan.seconds, "mfu": plan.utilisation(target)}
    derived |= {"limit": plan.limit(target)} | {f"{name}_seconds": took for name, took in plan.takes(target).items()}
    numbers = {k: v for k, v in vars(plan).items() if k != "exchanges"} | derived
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}
    return finite | {"exchanges": exchanges, "config": records.to_dict(config)}


def _bytes(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return "?" if math.isnan(count) else f"{count:.0f} B"


def _input(config: Config) -> str:
    """Images a second that this machine's pipeline brings to one device, or why that isn't known."""
    import jax

    from ddpm_jax import data
    from ddpm_jax.training import feed, mesh

    try:
        source = data.load(config.data)
    except (ValueError, OSError, ImportError) as error:
        return f"not measured ({' '.join(str(error).split())[:120]})"
    one = mesh.make_mesh(devices=jax.devices()[:1])
    rate = feed.images_per_second(source, config.data, batch_size=min(config.batch_size, 256), mesh=one)
    return f"{rate:,.0f} images/s"


if __name__ == "__main__":
    flags.run(main)
