"""What train.py --dry-run says: what the run would do. Nothing is written, compiled or downloaded."""

import math
from collections.abc import Iterator

import jax

from ddpm_jax import data, files, planning
from ddpm_jax.config import Classifier, Config
from ddpm_jax.training import checkpoint, checks, feed, preview
from ddpm_jax.training import program as program_lib
from ddpm_jax.training.draw import way, width
from ddpm_jax.training.run import Parts, abstract_arguments, build

PREPARED = ("folder", "fashion_mnist")
"""Sources that are first read into files of the cache: not in a dry run."""


def lines(config: Config, workdir: files.Place, program: files.Place | None = None) -> Iterator[str]:
    """What there is to say of the run, a line each.

    Raises:
        as `training.loop.train`, for what can be found out without preparing data or reading another run; of data that
            isn't there it is said so.
    """
    parts = build(config)
    config = parts.config
    checks.settings(parts)
    changed = checks.folder(config, workdir)
    begun = checkpoint.newest(workdir / "checkpoints")
    checks.dispatches(config, begun)
    if program is not None:
        program_lib.read(program, parts)
    found = _data(config)
    yield _line("run", _run(config, workdir, begun))
    yield from (_line("", f"with {line}") for line in changed)
    yield _line("data", found)
    device, mesh = parts.mesh.devices.flat[0], " x ".join(f"{name} {size}" for name, size in parts.mesh.shape.items())
    yield _line("devices", f"{parts.mesh.size} of {device.platform} ({device.device_kind}), mesh {mesh}")
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(parts.abstract().params))
    yield _line("network", f"{config.net.kind}, {count:,} parameters, computes in {config.net.dtype}")
    yield _line("memory", _state(parts))
    flops = 3 * planning.model_flops(config) * config.batch_size
    yield _line("work", f"{flops / 1e9:.3g} GFLOP a step: three times the network's forward pass on a batch")
    for i, each in enumerate(_compiled(parts, program)):
        yield _line("" if i else "compiles", each)
    yield _line("writes", ", ".join(f"{what} every {steps:,} steps" for what, steps in _intervals(config).items()))


def _line(title: str, said: str) -> str:
    return f"{title:10}{said}"


def _run(config: Config, workdir: files.Place, begun: int) -> str:
    if begun >= config.steps:
        return f"{workdir} is at step {begun:,} of {config.steps:,}: there is nothing left to do"
    what = f"{workdir} goes on from step {begun:,}" if begun else f"{workdir}, from the beginning"
    return f"{what}, to step {config.steps:,}, {config.batch_size} images each"


def _data(config: Config) -> str:
    asked = config.data
    name = " ".join(filter(None, [asked.source, asked.name, asked.path, asked.split]))
    shape = "x".join(map(str, asked.shape))
    if asked.source in PREPARED:
        return f"{name}, {shape}: not looked into, for it may be prepared first"
    try:
        source = data.load(asked)
    except (FileNotFoundError, ImportError) as error:
        return f"NOT HERE: {' '.join(str(error).split())}"
    feed.check_source(asked, source)
    checks.labels(config, source)
    epochs = config.steps * config.batch_size / len(source)
    return f"{name}, {len(source):,} images of {shape}, each seen {epochs:.3g} times"


def _state(parts: Parts) -> str:
    state, size = parts.abstract(), planning.bytes_on_device
    shares = {
        "parameters": size(state.trained()),
        "averages": size((state.ema, state.power_ema)),
        "optimizer": size(state.opt_state),
    }
    said = ", ".join(f"{name} {share / 2**20:.1f}" for name, share in shares.items())
    return f"{size(state) / 2**20:.1f} MiB of state on each device ({said}); activations: python -m ddpm_jax.cli.plan"


def _compiled(parts: Parts, program: files.Place | None) -> Iterator[str]:
    config, run = parts.config, parts.config.run
    _, batch, _ = abstract_arguments(parts)
    taken = f", in {config.devices.accumulate} parts" if config.devices.accumulate > 1 else ""
    step = f"the step, of images {list(batch.images.shape)}{taken}"
    yield step if program is None else f"not the step: it is {program}"
    if run.gradients_every:
        yield f"the gradient by bin, {run.bins} of them"
    if not isinstance(config.net, Classifier):
        chosen = preview.how(config)
        steps = way(parts, chosen).num_steps
        yield f"previews: {steps} steps of {chosen.sampler}, {width(parts, run.num_samples, 64)} images at once"
    if run.evaluate_every:
        yield f"evaluations, of {run.evaluate_num:,} images"


def _intervals(config: Config) -> dict[str, int]:
    run = config.run
    every = {"the log": run.log_every, "a checkpoint": run.checkpoint_every}
    every |= {} if isinstance(config.net, Classifier) else {"a preview": run.sample_every}
    return every | ({"an evaluation": run.evaluate_every} if run.evaluate_every else {})
