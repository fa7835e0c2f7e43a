"""Train a diffusion model: python train.py PRESET [--workdir DIR] [--steps N] [--batch-size B] ... (--help lists all).

A run's folder in place of a preset goes on with that run, by its own config.
The same command again goes on from the newest checkpoint.
"""

import sys

from ddpm_jax.cli import flags


def main(args: list[str]) -> None:
    asked = flags.training(args)
    # Imported late: a mistyped flag should not have to wait for JAX.
    if asked.dry_run:
        if asked.launch != type(asked.launch)():
            raise ValueError(
                "--dry-run is of this process alone: leave --launch out, or ask python -m ddpm_jax.cli.plan"
            )
        from ddpm_jax.cli import dry_run

        return print(*dry_run.lines(asked.config, asked.workdir, asked.program), "nothing was written", sep="\n")
    from ddpm_jax.training import processes
    from ddpm_jax.training.loop import NonFiniteLossError, train

    flags.begin(asked.launch, saves=str(asked.workdir / "checkpoints"))
    try:
        state = train(asked.config, asked.workdir, program=asked.program)
    except NonFiniteLossError as error:
        sys.exit(f"train.py: {error}")
    step = int(state.step)
    if step < asked.config.steps:
        print(f"{asked.workdir} was asked to stop, and is saved at step {step}; the same command goes on")
    elif processes.writes():
        draws = asked.config.diffusion.objective != "classifier"
        print(f"{asked.workdir} is at step {step}" + (f"; look: python sample.py {asked.workdir}" if draws else ""))


if __name__ == "__main__":
    flags.run(main, stopped="stopped; the same command goes on from the newest checkpoint")
