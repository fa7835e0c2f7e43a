"""Teach a network of few steps: python -m ddpm_jax.cli.distill WORKDIR [METHOD] [--workdir DIR] [--steps N] ...

WORKDIR is the teacher's, as train.py leaves it. METHOD is progressive (the default), consistency or
consistency_training, which takes a preset as well, for it needs no teacher. The same command again goes on.
"""

import dataclasses
import sys
from typing import Annotated

import tyro

from ddpm_jax.cli import flags
from ddpm_jax.config import Config, Launch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """A distillation: where it goes, and every field of its config; --steps are those of training, of each halving."""

    workdir: flags.Place
    """For progressive: the folder of the runs steps_S, one for each number S of DDIM steps. Else the run's folder."""
    start_steps: int = 64
    """For progressive: DDIM steps of the first student, half of its teacher's."""
    end_steps: int = 1
    launch: Launch = Launch()
    config: Annotated[Config, tyro.conf.arg(name="")]


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print("python -m ddpm_jax.cli.distill WORKDIR [METHOD] [--workdir DIR] [--steps N] [--start-steps S] ...")
        print("METHOD is progressive, consistency or consistency_training; WORKDIR METHOD --help lists every flag.")
        sys.exit(0)
    name, *rest = args
    method = rest.pop(0) if rest and not rest[0].startswith("-") else "progressive"
    workdir, theirs = flags.starting_config(name) if method == "consistency_training" else flags.run_folder(name)
    # Imported late: a mistyped flag should not have to wait for JAX; but the defaults are the method's.
    from ddpm_jax.training import distill, processes
    from ddpm_jax.training.loop import NonFiniteLossError, train

    default = Flags(
        workdir=workdir.parent / f"{workdir.name}_{method}", config=distill.default(method, theirs, str(workdir))
    )
    asked = flags.parse(Flags, rest, prog=f"distill {name} {method}", default=default)
    for count in ("start_steps", "end_steps"):
        if method != "progressive" and getattr(asked, count) != getattr(default, count):
            raise ValueError(f"--{count.replace('_', '-')} {getattr(asked, count)} has no part in {method}")
    runs = [(asked.config, asked.workdir)]
    if method == "progressive":
        runs = list(distill.halvings(asked.config, asked.workdir, start=asked.start_steps, end=asked.end_steps))
    flags.begin(asked.launch, saves=str(runs[0][1] / "checkpoints"))
    for config, folder in runs:
        try:
            step = int(train(config, folder).step)
        except NonFiniteLossError as error:
            sys.exit(f"distill: {error}")
        if step < config.steps:
            print(f"{folder} was asked to stop, and is saved at step {step}; the same command goes on")
            return
        if processes.writes():
            print(f"{folder} is at step {step}; look: python sample.py {folder}")


if __name__ == "__main__":
    flags.run(main, stopped="stopped; the same command goes on from the newest checkpoint")
