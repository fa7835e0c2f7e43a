"""Train a diffusion model: python train.py PRESET [--workdir DIR] [--steps N] [--batch-size B] ... (--help lists all).

A run's folder in place of a preset goes on with that run, by its own config.
The same command again goes on from the newest checkpoint.
"""

import sys

from ddpm_jax.cli import flags


def main(args: list[str]) -> None:
    config, workdir = flags.training(args)
    # Imported late: a mistyped flag should not have to wait for JAX.
    from ddpm_jax.training.loop import NonFiniteLossError, train

    try:
        state = train(config, workdir)
    except NonFiniteLossError as error:
        sys.exit(f"train.py: {error}")
    print(f"{workdir} is at step {int(state.step)}; look: python sample.py {workdir}")


if __name__ == "__main__":
    flags.run(main, stopped="stopped; the same command goes on from the newest checkpoint")
