"""From a command line to a config; and from an error to one line."""

import contextlib
import dataclasses
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from ddpm_jax.config import Config, Launch, read
from ddpm_jax.records import suggest

T = TypeVar("T")
PRESETS = Path(__file__).resolve().parents[2] / "configs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """A run: where it goes, and every field of its config."""

    workdir: Path
    """The run's folder."""
    launch: Launch = Launch()
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
    if name.startswith("-"):
        raise ValueError(f"the first argument must be a preset, got {name!r}; choose from {', '.join(presets())}")
    if (Path(name) / "config.json").is_file() and name not in presets():
        workdir, config = run_folder(name)
        default = Training(workdir=workdir, config=config)
    else:
        default = Training(workdir=Path("runs") / Path(name).stem, config=load_preset(name))
    return parse(Training, rest, prog=f"train.py {name}", default=default)


def run_folder(name: str) -> tuple[Path, Config]:
    """A run's folder and its config.

    Raises:
        FileNotFoundError: if it is none, with the nearest that is.
        ValueError: for a flag where the folder should be.
    """
    if name.startswith("-"):
        raise ValueError(f"the first argument must be a run's folder, got {name!r}")
    folder = Path(name)
    if not (folder / "config.json").is_file():
        near = [str(file.parent) for file in folder.parent.glob("*/config.json")]
        raise FileNotFoundError(f"{name} is no run's folder (it has no config.json){suggest(name, near)}")
    return folder, read(folder / "config.json")


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

    `stopped` is what Ctrl-C says.

    With DDPM_JAX_TRACEBACK=1 in the environment the whole traceback is shown.
    """
    program = Path(sys.argv[0]).name
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print(f"\n{program}: {stopped}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("DDPM_JAX_TRACEBACK"):
            raise
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
