"""Published weights in and out.

    python -m ddpm_jax.cli.convert read SOURCE WORKDIR [--format NAME] [--preset NAME] [--raw] [--step N] ...
    python -m ddpm_jax.cli.convert write WORKDIR FOLDER [--raw] [--checkpoint N]

`read` makes a run's folder of SOURCE: a folder, a file or a prefix of files, or OWNER/NAME on the Hugging Face Hub. Of
a diffusers folder the network and the schedule come from its own files, where no flag of sampling says otherwise; of
any other the preset and flags must say them. `write` makes of a run a folder that diffusers.DDPMPipeline opens.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

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
    null_class: bool = False
    """The last class of a diffusers network is "no class", as in what `write` makes, which says so. Else a class for it
    is added, the mean of the others."""
    step: int = 0
    """The step that training goes on from, and the learning rate; the optimizer's moments begin anew."""
    config: Annotated[Config, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Write:
    """Make a diffusers folder of a run."""

    raw: bool = False
    """Use the weights of the last step, not their average over training."""
    checkpoint: int | Literal["best"] | None = None
    """The step to read, or best (of those that training evaluated); the newest if not given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What a reader found: the config, the parameters, the file they are from, which of its weights they are, and lines
    on what to know."""

    config: Config
    params: Any
    file: Path
    which: str
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """How a format is read, given what is asked for and the config without its flags; the preset that serves where none
    is given, "" where there is no obvious one."""

    read: Callable[[Path, Read, Config], Found]
    preset: str


OF_SOURCE = ("net.", "diffusion.", "sampling.", "data.shape")
AVERAGED, RAW = "the averaged weights (EMA)", "the last step's weights (raw)"
AS_PUBLISHED = "as published (whether these are averaged weights only the publisher can say{})"
VP_ONLY = ", read as a VP network; files of the subvp and ve configs look the same and would draw noise"


def _one_set(path: Path, raw: bool) -> None:
    if raw:
        raise ValueError(f"--raw needs a source with two sets of weights, {path} has one")


def _diffusers(path: Path, asked: Read, base: Config) -> Found:
    from ddpm_jax.interop import diffusers

    _one_set(path, asked.raw)
    config = diffusers.describe(path, asked.config)
    params = diffusers.load(path)[1]["params"]
    notes = []
    if diffusers.scheduler_file(path) is None:
        of = config.diffusion
        notes.append(f"it has no scheduler_config.json: read as {of.schedule}, {of.num_steps} steps, {of.prediction}")
    classes = config.net.num_classes if isinstance(config.net, UNet) else 0
    if asked.null_class and not classes:
        raise ValueError(f"--null-class needs a network with classes, {path} has none")
    if classes and (asked.null_class or diffusers.has_null_class(path)):
        notes.append(f"its classes are 0 to {classes - 1}; its last, {classes}, is read as no class")
    elif classes:
        config, params = _with_null_class(config, params, asked.config, base)
        notes.append(
            f"its classes are 0 to {classes}; {classes + 1}, no class, is added, the mean of them, and not trained: "
            "guidance wants it trained, with --net.label-dropout. If its last class is no class: --null-class"
        )
    # What a flag says of sampling is no part of the network: it stands.
    said = [name.split(".")[1] for name in _flags(base, asked.config, "sampling.")]
    stands = {name: getattr(asked.config.sampling, name) for name in said}
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, **stands))
    which = AS_PUBLISHED.format("")
    return Found(config=config, params=params, file=diffusers.weights_file(path), which=which, notes=tuple(notes))


def _with_null_class(config: Config, params: Any, asked: Config, base: Config) -> tuple[Config, Any]:
    """A "no class" is added; training hides no class in it, as the publisher's didn't, unless a flag asks for it."""
    from ddpm_jax.interop import diffusers

    config, params = diffusers.add_null_class(config, params)
    if _flags(base, asked, "net.label_dropout"):
        return config, params
    return dataclasses.replace(config, net=dataclasses.replace(config.net, label_dropout=0.0)), params


def _flags(base: Config, asked: Config, start: str) -> dict[str, tuple[Any, Any]]:
    """What flags say otherwise than the preset, of the fields whose names start so."""
    return {name: pair for name, pair in records.differences(base, asked).items() if name.startswith(start)}


def _openai(path: Path, asked: Read, base: Config) -> Found:
    del base
    from ddpm_jax import nets
    from ddpm_jax.interop import openai

    config = asked.config
    _one_set(path, asked.raw)
    if config.net.kind != "adm":
        known = ", ".join(name for name in flags.presets() if flags.load_preset(name).net.kind == "adm")
        raise ValueError(f"--preset must be one with network adm for an openai file, got {config.net.kind}: {known}")
    module: Any = nets.build(config)
    params = openai.load(path, module, config.data.shape[2])["params"]
    return Found(config=config, params=params, file=path, which=AS_PUBLISHED.format("; openai's ema_*.pt are"))


def _ho(path: Path, asked: Read, base: Config) -> Found:
    del base
    from ddpm_jax import nets
    from ddpm_jax.interop import ho

    config, raw = asked.config, asked.raw
    path = path.with_name(path.name.removesuffix(".index"))
    module: Any = nets.build(config)
    params = ho.load(path, module, config.data.shape[2], ema=not raw)["params"]
    return Found(config=config, params=params, file=path, which=RAW if raw else AVERAGED)


def _score_sde(path: Path, asked: Read, base: Config) -> Found:
    del base
    from ddpm_jax import nets
    from ddpm_jax.interop import score_sde

    config, raw = asked.config, asked.raw
    module: Any = nets.build(config)
    params = score_sde.load(path, module, config.data.shape[2], ema=not raw)["params"]
    return Found(config=config, params=params, file=path, which=(RAW if raw else AVERAGED) + VP_ONLY)


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
    if path.suffix in (".pt", ".pth", ".bin", ".safetensors"):
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
    preset, workdir = _preset(rest), flags.folder_here(target)
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
    if asked.null_class and form is not FORMATS["diffusers"]:
        raise ValueError("--null-class is for diffusers networks with classes, got another format")
    found = form.read(path, asked, _base(preset))
    _say_what_gives_way(asked.config, found.config, preset)
    import jax

    from ddpm_jax.interop import folder

    folder.write(workdir, found.config, found.params, step=asked.step)
    count = sum(leaf.size for leaf in jax.tree.leaves(found.params))
    print(f"{workdir}: {count:,} parameters from {found.file}, {found.which}")
    for note in found.notes:
        print(note)
    kept = found.config.diffusion
    print(
        f"kept by it:   objective {kept.objective}, draw-t {kept.draw_t}, time-range {kept.time_range:g}: flags of read"
    )
    print(f"draw images:  python sample.py {workdir}")
    data = found.config.data
    where = f" --data.path {data.source.upper()}" if data.source in ("folder", "array") and not data.path else ""
    print(f"train on:     python train.py {workdir}{where}")


def _say_what_gives_way(asked: Config, found: Config, preset: str) -> None:
    """One line on what a preset or a flag says otherwise than the source."""
    said = records.differences(asked, found)
    if not preset:
        said = {name: pair for name, pair in said.items() if name in _flags(_base(""), asked, "")}
    lines = [f"{name}: {ours!r} -> {theirs!r}" for name, (ours, theirs) in said.items() if name.startswith(OF_SOURCE)]
    if lines:
        print("the source's own settings hold: " + "; ".join(lines))


def _write(source: str, target: str, rest: Sequence[str]) -> None:
    workdir, config = flags.run_folder(source)
    asked = flags.parse(Write, rest, prog=f"convert write {source} {target}", default=Write())
    from ddpm_jax.interop import diffusers, whole
    from ddpm_jax.training import run

    folder = flags.folder_here(target)
    whole.refuse_used(folder)
    _, state = run.load(workdir, step=asked.checkpoint)
    diffusers.save(folder, config, state.params if asked.raw else state.ema)
    print(f"{target}: the {'last' if asked.raw else 'averaged'} weights of {workdir} at step {int(state.step)}")
    if isinstance(config.net, UNet) and config.net.num_classes:
        none = config.net.num_classes
        print(
            f"it takes classes, which DDPMPipeline doesn't pass: call its unet with class_labels, {none} for no class"
        )
    if (config.sampling.sampler, config.sampling.steps) != ("ddpm", ()):
        steps = " ".join(map(str, config.sampling.steps)) or "all"
        said = f"sampler {config.sampling.sampler} and its steps ({steps})"
        print(f"not part of it: {said}; DDPMPipeline draws with ddpm, in as many steps as it is told")
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
