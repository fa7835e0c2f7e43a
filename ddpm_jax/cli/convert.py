"""Published weights in and out.

    python -m ddpm_jax.cli.convert read SOURCE WORKDIR [--format NAME] [--preset NAME] [--raw] [--step N] ...
    python -m ddpm_jax.cli.convert write WORKDIR FOLDER [--raw] [--checkpoint N]

`read` makes a run's folder of SOURCE: a folder, a file or a prefix of files, or OWNER/NAME on the Hugging Face Hub. Of
a diffusers folder the network and the schedule come from its own files; of any other the preset and flags must say
them. `write` makes of a run a folder that diffusers.DDPMPipeline opens.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ddpm_jax import records
from ddpm_jax.cli import flags
from ddpm_jax.config import Config, Data, UNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """Make a run's folder of published weights."""

    format: str = ""
    """diffusers, openai, ho or score_sde; empty for what the source looks like."""
    preset: str = ""
    """What the source doesn't say comes from this preset, and from flags."""
    raw: bool = False
    """Of a file with both, take the weights of the last step, not their average over training."""
    step: int = 0
    """The step that training goes on from."""
    config: Annotated[Config, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Write:
    """Make a diffusers folder of a run."""

    raw: bool = False
    """Use the weights of the last step, not their average over training."""
    checkpoint: int | None = None
    """The step to read; the newest if not given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What a reader found: the config, the parameters, the file they are from, and which of its weights they are."""

    config: Config
    params: Any
    file: Path
    which: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """How a format is read; the preset that serves where none is given, "" where there is no obvious one."""

    read: Callable[[Path, Config, bool], Found]
    preset: str


OF_SOURCE = ("net.", "diffusion.", "data.shape")
AVERAGED, RAW = "the averaged weights (EMA)", "the last step's weights (raw)"
AS_PUBLISHED = "as published (whether these are averaged weights only the publisher can say{})"


def _one_set(path: Path, raw: bool) -> None:
    if raw:
        raise ValueError(f"--raw needs a source with two sets of weights, {path} has one")


def _diffusers(path: Path, config: Config, raw: bool) -> Found:
    from ddpm_jax.interop import diffusers

    _one_set(path, raw)
    config = diffusers.describe(path, config)
    params = diffusers.load(path)[1]["params"]
    which = AS_PUBLISHED.format("")
    if isinstance(config.net, UNet) and config.net.num_classes:
        which += f"; its last class, {config.net.num_classes}, is read as no class"
    return Found(config=config, params=params, file=diffusers.weights_file(path), which=which)


def _openai(path: Path, config: Config, raw: bool) -> Found:
    from ddpm_jax import nets
    from ddpm_jax.interop import openai

    _one_set(path, raw)
    if config.net.kind != "adm":
        known = ", ".join(flags.presets())
        raise ValueError(f"--preset must be one with network adm for an openai file, got {config.net.kind}: {known}")
    module: Any = nets.build(config)
    params = openai.load(path, module, config.data.shape[2])["params"]
    return Found(config=config, params=params, file=path, which=AS_PUBLISHED.format("; openai's ema_*.pt are"))


def _ho(path: Path, config: Config, raw: bool) -> Found:
    from ddpm_jax import nets
    from ddpm_jax.interop import ho

    path = path.with_name(path.name.removesuffix(".index"))
    module: Any = nets.build(config)
    params = ho.load(path, module, config.data.shape[2], ema=not raw)["params"]
    return Found(config=config, params=params, file=path, which=RAW if raw else AVERAGED)


def _score_sde(path: Path, config: Config, raw: bool) -> Found:
    from ddpm_jax import nets
    from ddpm_jax.interop import score_sde

    module: Any = nets.build(config)
    params = score_sde.load(path, module, config.data.shape[2], ema=not raw)["params"]
    return Found(config=config, params=params, file=path, which=RAW if raw else AVERAGED)


FORMATS = {
    "diffusers": Format(read=_diffusers, preset=""),
    "openai": Format(read=_openai, preset=""),
    "ho": Format(read=_ho, preset="cifar10"),
    "score_sde": Format(read=_score_sde, preset="cifar10"),
}


def guess(path: Path) -> str:
    """The format that a source looks like, from its names and its first byte.

    Raises:
        ValueError: if it looks like none.
    """
    if any((path / name).is_file() for name in ("config.json", "unet/config.json", "model_index.json")):
        return "diffusers"
    if path.suffix in (".pt", ".pth"):
        return "openai"
    if path.suffix == ".index" or Path(f"{path}.index").is_file():
        return "ho"
    if Path(f"{path}.json").is_file() and Path(f"{path}.safetensors").is_file():
        return "diffusers"
    if path.is_file():
        with path.open("rb") as file:
            first = file.read(1)
        if first and (0x80 < first[0] <= 0x8F or first[0] in (0xDE, 0xDF)):  # a msgpack map with something in it
            return "score_sde"
    raise ValueError(f"{path} looks like none of the formats that are read; say --format, one of {', '.join(FORMATS)}")


def _preset(args: Sequence[str]) -> str:
    """The value of --preset, which decides what the other flags are."""
    for i, arg in enumerate(args):
        if arg == "--preset" and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith("--preset="):
            return arg.removeprefix("--preset=")
    return ""


def _base(preset: str) -> Config:
    return flags.load_preset(preset) if preset else Config(data=Data(source="folder"))


def _read(source: str, target: str, rest: Sequence[str]) -> None:
    preset, workdir = _preset(rest), Path(target)
    program = f"convert read {source} {workdir}"
    # Before anything is fetched, so that a mistyped flag doesn't have to wait for it.
    asked = flags.parse(Read, rest, prog=program, default=Read(config=_base(preset)))
    from ddpm_jax.interop import hub, whole

    whole.refuse_used(workdir)
    path = hub.fetch(source)
    form = records.pick(FORMATS, asked.format or guess(path), "--format")
    if not preset and form.preset:
        preset = form.preset
        asked = flags.parse(Read, rest, prog=program, default=Read(config=_base(preset)))
    found = form.read(path, asked.config, asked.raw)
    _say_what_gives_way(asked.config, found.config, preset)
    import jax

    from ddpm_jax.interop import folder

    folder.write(workdir, found.config, found.params, step=asked.step)
    count = sum(leaf.size for leaf in jax.tree.leaves(found.params))
    print(f"{workdir}: {count:,} parameters from {found.file}, {found.which}")
    print(f"draw images:  python sample.py {workdir}")
    data = found.config.data
    where = f" --data.path {data.source.upper()}" if data.source in ("folder", "array") and not data.path else ""
    print(f"train on:     python train.py {workdir}{where}")


def _say_what_gives_way(asked: Config, found: Config, preset: str) -> None:
    """One line on what a preset or a flag says otherwise than the source."""
    said = records.differences(asked, found)
    if not preset:
        said = {name: pair for name, pair in said.items() if name in records.differences(_base(""), asked)}
    lines = [f"{name}: {ours!r} -> {theirs!r}" for name, (ours, theirs) in said.items() if name.startswith(OF_SOURCE)]
    if lines:
        print("the source's own settings hold: " + "; ".join(lines))


def _write(source: str, target: str, rest: Sequence[str]) -> None:
    workdir, config = flags.run_folder(source)
    asked = flags.parse(Write, rest, prog=f"convert write {source} {target}", default=Write())
    from ddpm_jax.interop import diffusers, whole
    from ddpm_jax.training import run

    whole.refuse_used(Path(target))
    _, state = run.load(workdir, step=asked.checkpoint)
    diffusers.save(Path(target), config, state.params if asked.raw else state.ema)
    print(f"{target}: the {'last' if asked.raw else 'averaged'} weights of {workdir} at step {int(state.step)}")
    if isinstance(config.net, UNet) and config.net.num_classes:
        none = config.net.num_classes
        print(
            f"it takes classes, which DDPMPipeline doesn't pass: call its unet with class_labels, {none} for no class"
        )
    print(f"open it:  diffusers.DDPMPipeline.from_pretrained({target!r})")


COMMANDS = {"read": (_read, "SOURCE WORKDIR"), "write": (_write, "WORKDIR FOLDER")}


def main(args: list[str]) -> None:
    if not args or {"-h", "--help"} & set(args[:3]):
        print(
            "python -m ddpm_jax.cli.convert read SOURCE WORKDIR [--format NAME] [--preset NAME] [--raw] [--step N] ..."
        )
        print("python -m ddpm_jax.cli.convert write WORKDIR FOLDER [--raw] [--checkpoint N]")
        print("--help after the two names lists every flag.")
        sys.exit(0)
    command, names = records.pick(COMMANDS, args[0], "the first argument")
    if len(args) < 3 or any(name.startswith("-") for name in args[1:3]):
        raise ValueError(f"{args[0]} must be followed by {names}, got {' '.join(args[1:3]) or 'nothing'}")
    command(args[1], args[2], args[3:])


if __name__ == "__main__":
    flags.run(main)
