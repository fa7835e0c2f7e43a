"""The bound and the probability-flow ODE on one run: python benchmarks/flow_likelihood.py WORKDIR [--num N]

Measures the held-out images of a run, python train.py digits --steps 1000 say, by the program ddpm_jax.cli.likelihood:
the variational bound, and the ODE's bits/dim with each dequantisation. Prints a table.
"""

import dataclasses
import json

from ddpm_jax.cli import flags, likelihood

WAYS = ("noise", "uniform", "variational")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Measure a run in every way."""

    num: int = 0
    """Images; 0 for all."""
    num_t: int = 50
    """t an image for the bound; 0 for all."""
    tolerance: float = 1e-4
    """rtol and atol of the ODE's solver."""
    only: tuple[str, ...] = WAYS
    """Dequantisations."""


def main(args: list[str]) -> None:
    workdir, _ = flags.run_folder(args[0] if args else "")
    asked = flags.parse(Flags, args[1:], prog=f"flow_likelihood {workdir}", default=Flags())
    settings = {"num": asked.num, "num-t": asked.num_t, "rtol": asked.tolerance, "atol": asked.tolerance}
    given = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    rows = []
    for way in asked.only:
        likelihood.main([args[0], *given, "--ode", "--dequantisation", way])
        found = json.loads((workdir / "likelihood.json").read_text())
        rows.append((f"ODE, {way}", found["ode"]))
        bound = found
    for name, row in (("bound", bound), *rows):
        print(f"{name:20} {row['bits_per_dim']:.4f} +- {row['standard_error']:.4f}   steps {row.get('steps', 0):.0f}")


if __name__ == "__main__":
    flags.run(main)
