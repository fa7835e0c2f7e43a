"""From a command line to a config; and from an error to one line."""

import contextlib
import dataclasses
import importlib.util
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from ddpm_jax import files
from ddpm_jax.config import Config, Launch, read
from ddpm_jax.records import suggest

T = TypeVar("T")
PRESETS = Path(__file__).resolve().parents[2] / "configs"

Place = Annotated[
    files.Place,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda given: files.place(given[0]),
        is_instance=lambda value: isinstance(value, files.Place),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""A flag that takes a path of this machine or gs://BUCKET/NAME."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """A run: where it goes, and every field of its config."""

    workdir: Place
    """The run's folder, of this machine or gs://BUCKET/NAME."""
    launch: Launch = Launch()
    program: Place | None = None
    """A training step compiled beforehand for these devices, by python -m ddpm_jax.cli.plan ... --save."""
    dry_run: bool = False
    """Say what the run would do, and do nothing."""
    config: Annotated[Config, tyro.conf.arg(name="")]


def presets(folder: Path = PRESETS) -> dict[str, str]:
    """Every preset's name and the first line of its docstring."""
    found = {}
    for file in sorted(folder.glob("*.py")):
        first = file.read_text().lstrip().removeprefix('"""').split("\n", 1)[0]
        found[file.stem] = first.strip().rstrip('"')
    return found


def load_preset(name: str) -> Config:
    """The `config` of configs/NAME.py, or of any Python file by its path.

    Raises:
        ValueError: for a name that isn't there, with the nearest that is, or a file without a config.
    """
    file = Path(name) if name.endswith(".py") else PRESETS / f"{name}.py"
    if not file.is_file():
        known = presets()
        raise ValueError(f"there is no preset {name!r}{suggest(name, known)}; choose from {', '.join(known)}")
    spec = importlib.util.spec_from_file_location(f"preset_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "config", None), Config):
        raise ValueError(f"{file} must define `config`, a ddpm_jax.config.Config")
    return module.config


def training(args: Sequence[str]) -> Training:
    """What train.py's arguments ask for; lists the presets and exits if there are none.

    The first argument is a preset, or a run's folder, whose own config is then where the flags start.
    """
    if not args or args[0] in ("-h", "--help"):
        lines = [f"  {name:18}{line}" for name, line in presets().items()]
        print("python train.py PRESET [--workdir DIR] [--steps N] [--batch-size B] [--seed S] ...")
        print("python train.py WORKDIR ...    goes on with a run's folder")
        print("\nPresets (PRESET --help lists every flag):", *lines, sep="\n")
        sys.exit(0)
    name, *rest = args
    workdir, config = starting_config(name)
    default = Training(workdir=workdir, config=config)
    return parse(Training, rest, prog=f"train.py {name}", default=default)


def starting_config(name: str) -> tuple[files.Place, Config]:
    """Where flags start: a preset and the folder that its run would have, or a run's folder and its own config.

    Raises:
        ValueError: for a name that is neither.
    """
    if name.startswith("-"):
        raise ValueError(f"the first argument must be a preset, got {name!r}; choose from {', '.join(presets())}")
    if name not in presets() and files.is_file(files.place(name) / "config.json"):
        return run_folder(name)
    return Path("runs") / Path(name).stem, load_preset(name)


def run_folder(name: str) -> tuple[files.Place, Config]:
    """A run's folder and its config.

    Raises:
        FileNotFoundError: if it is none, with the nearest that is.
        ValueError: for a flag where the folder should be.
    """
    if name.startswith("-"):
        raise ValueError(f"the first argument must be a run's folder, got {name!r}")
    folder = files.place(name)
    if not files.is_file(folder / "config.json"):
        # Not in a bucket: looking around would list every object of every run.
        near = [str(file.parent) for file in folder.parent.glob("*/config.json")] if isinstance(folder, Path) else []
        raise FileNotFoundError(f"{name} is no run's folder (it has no config.json){suggest(name, near)}")
    return folder, read(folder / "config.json")


def folder_here(name: str) -> Path:
    """A folder that must lie on this machine.

    Raises:
        ValueError: if it names a bucket.
    """
    folder = files.place(name)
    if not isinstance(folder, Path):
        raise ValueError(f"this writes on this machine only, got {name}")
    return folder


def parse(cls: type[T], args: Sequence[str], *, prog: str, default: T) -> T:
    """Read flags into a record with tyro; --help prints and exits.

    Raises:
        ValueError: in one line, for a flag that doesn't exist (with the nearest that does) or a value that isn't one.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(cls, args=list(args), prog=prog, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_unbox(box.getvalue())) from None


def begin(launch: Launch | None = None, *, saves: str = "") -> None:
    """What a program does once its flags are read, before anything else of JAX is used: it meets the other processes,
    if there are any (`processes.join`), or, being the only one, keeps what it compiles (`compiled.keep`) and, if it
    trains and `saves` what it learned, the memory that it has freed (`heap.keep`).

    Of several processes JAX lets only the first write, so that their folder must be one that all see. Which that is,
    only the user knows (JAX_COMPILATION_CACHE_DIR).

    Raises:
        as `processes.join`.
    """
    from ddpm_jax import heap
    from ddpm_jax.training import compiled, processes

    launch = launch or Launch()
    processes.join(launch, saves=saves)
    if not launch.auto and not launch.num_processes:
        compiled.keep()
        if saves:
            heap.keep()


def _unbox(text: str) -> str:
    """tyro's framed message, as one line. The frame is of box-drawing characters or, on plain terminals, of dashes."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines()[1:]:  # the first is the frame's title
        words = line.strip("│╭╮╰╯|+ ")
        if set(words) <= {"─", "-"}:
            blocks.append([])
        else:
            blocks[-1].append(words)
    said = [" ".join(" ".join(block).split()) for block in blocks if block and "full helptext" not in block[0]]
    return "; ".join(said)


def run(main: Callable[[list[str]], None], *, stopped: str = "stopped") -> None:
    """Call main(arguments); an error that the user can mend ends the program with one line and status 2.

    `stopped` is what Ctrl-C says. One of several processes tells the others of its error, and doesn't wait for them.

    With DDPM_JAX_TRACEBACK=1 in the environment the whole traceback is shown.
    """
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # of a bucket: it logs whole tracebacks of what it raises
    try:
        main(sys.argv[1:])
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        processes = sys.modules.get("ddpm_jax.training.processes")  # not there if JAX wasn't reached
        several = processes if processes is not None and processes.failed(error) else None
        line, status = _explained(error, stopped)
        if line is None and several is None:
            raise
        print(line or traceback.format_exc(), file=sys.stderr)
        if several is not None:
            several.leave(status)
        sys.exit(status)


def _explained(error: BaseException, stopped: str) -> tuple[str | None, int]:
    """What to say of an error, None for all there is to it, and the status to end with."""
    program = Path(sys.argv[0]).name
    if isinstance(error, KeyboardInterrupt):
        return f"\n{program}: {stopped}", 130
    if isinstance(error, SystemExit):
        return (None, error.code) if isinstance(error.code, int) else (str(error.code), 1)
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)) and not os.environ.get("DDPM_JAX_TRACEBACK"):
        return f"{program}: {' '.join(str(error).split())}", 2
    return None, 1
