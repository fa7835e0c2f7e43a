"""How many bits does an image cost? python -m ddpm_jax.cli.likelihood WORKDIR [--num N] [--num-t K] ...

The variational bound on -log p(x_0), in bits per dimension (Ho et al. 2020, Sec. 4.3), of images of the run's data:
whole, T evaluations of the network an image, or estimated without bias from a few t (--num-t). A run that was trained
in continuous time is measured in continuous time. A network with classes is told the class of each image.

With --ode, also the likelihood itself, of the probability-flow ODE (Song et al. 2021, Sec. 4.3).
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any, Literal

from ddpm_jax import files, records
from ddpm_jax.cli import flags
from ddpm_jax.config import Config, Data, Launch
from ddpm_jax.records import pick


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Measure the bits per dimension of a run."""

    data: Data = Data(split="test")
    """Images to measure: a split of the run's data, or others."""
    num: int = 0
    """How many of them; 0 for all."""
    num_t: int = 0
    """Draw this many t an image rather than visit all; 0 for all (in continuous time, 8)."""
    variance: str = ""
    """Of the step back: large, small or medium:F; the run's own, learned or not, if not given."""
    decoder: str = "gaussian"
    """The last step: gaussian, published (its usual approximation) or categorical (Kingma et al. 2021)."""
    clip: bool = True
    """Keep the prediction of x_0 in [-1, 1]."""
    ode: bool = False
    """Also measure the probability-flow ODE's likelihood, a hundred or so evaluations an image; needs diffrax."""
    probes: int = 1
    """Random probes of the ODE's divergence (Hutchinson); several say what error they leave."""
    exact_trace: bool = False
    """Its exact divergence instead, as many products with the network's Jacobian as an image has numbers."""
    rtol: float = 1e-5
    """Relative error that a step of the ODE's solver may make, and atol the absolute one."""
    atol: float = 1e-5
    dequantisation: str = "uniform"
    """From bytes to densities: uniform, noise (the process's own), variational (trained first), or none."""
    draws: int = 1
    """Draws of the dequantisation for each image; several make the bound tighter, with --exact-trace."""
    dequantiser_steps: int = 500
    """Steps of training for --dequantisation variational."""
    batch_size: int = 128
    seed: int = 0
    raw: bool = False
    """Use the weights of the last step, not their average over training."""
    checkpoint: int | Literal["best"] | None = None
    """The step to read, or best (of those that training evaluated); the newest if not given."""
    launch: Launch = Launch()


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print("python -m ddpm_jax.cli.likelihood WORKDIR [--num N] [--num-t K] [--data.split NAME] ...")
        sys.exit(0)
    workdir, config = flags.run_folder(args[0])
    asked = flags.parse(
        Flags,
        args[1:],
        prog=f"likelihood {workdir}",
        default=Flags(data=dataclasses.replace(config.data, split="test")),
    )
    whole = {"num": 0, "num_t": 0, "batch_size": 1, "probes": 1, "draws": 1, "dequantiser_steps": 1}
    for name, least in whole.items():
        if getattr(asked, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(asked, name)}")
    if asked.data.shape != config.data.shape:
        raise ValueError(f"--data.shape must be the run's, {config.data.shape}, got {asked.data.shape}")
    _check_reading(asked, config)
    _check_ode(asked)
    _measure(asked, workdir, config)


def _check_reading(asked: Flags, config: Config) -> None:
    """Refuse a variance or decoder that can't be, or that would have no part in the result."""
    from ddpm_jax.diffusion import reverse
    from ddpm_jax.diffusion.decoder import DECODERS

    if config.diffusion.objective == "continuous":
        usual = Flags()
        for name in ("variance", "decoder", "clip"):
            if getattr(asked, name) != getattr(usual, name):
                raise ValueError(f"--{name} has no part in continuous time, got {getattr(asked, name)}")
        return
    pick(DECODERS, asked.decoder, "--decoder")
    reverse.variance(asked.variance or config.diffusion.variance, "--variance")
    if reverse.is_learned(asked.variance) and asked.variance != config.diffusion.variance:
        raise ValueError(f"--variance {asked.variance} needs a run that learned it, got {config.diffusion.variance}")


def _check_ode(asked: Flags) -> None:
    """Refuse settings of the ODE that can't be, or that would have no part in the result."""
    usual = Flags()
    if not asked.ode:
        for name in ("probes", "exact_trace", "rtol", "atol", "dequantisation", "draws", "dequantiser_steps"):
            if getattr(asked, name) != getattr(usual, name):
                raise ValueError(f"--{name.replace('_', '-')} {getattr(asked, name)} needs --ode")
        return
    from ddpm_jax.evaluation.dequantisation import DEQUANTISATIONS
    from ddpm_jax.sampling import black_box

    pick(dict.fromkeys([*DEQUANTISATIONS, "variational"]), asked.dequantisation, "--dequantisation")
    if asked.exact_trace and asked.probes != usual.probes:
        raise ValueError(f"--probes {asked.probes} has no part with --exact-trace")
    if asked.draws > 1 and not asked.exact_trace:
        raise ValueError(f"--draws {asked.draws} needs --exact-trace: the noise of probes would pass for probability")
    black_box.check("tsit5", asked.rtol, asked.atol, 1)


def _by_ode(asked: Flags, parts: Any, denoise: Any, over: Callable[..., Any]) -> dict[str, Any]:
    """Measure the probability-flow ODE, and say it; what likelihood.json holds of it."""
    import jax
    import numpy as np

    from ddpm_jax import data
    from ddpm_jax.evaluation import dequantisation
    from ddpm_jax.evaluation.flow_likelihood import by_flow
    from ddpm_jax.sampling import flow_likelihood
    from ddpm_jax.training import bits, processes

    levels = flow_likelihood.ends(parts.schedule)
    prediction = parts.config.diffusion.prediction
    key_fit, key = jax.random.split(jax.random.fold_in(jax.random.key(asked.seed), 1))
    if asked.dequantisation == "variational":
        source = data.load(parts.config.data)
        images = bits.reader(parts.config, source)
        fitted = dequantisation.fit(
            key_fit, denoise, levels, images, len(source), prediction=prediction, steps=asked.dequantiser_steps
        )
        dequantise = dequantisation.variational(fitted)
    else:
        dequantise = dequantisation.DEQUANTISATIONS[asked.dequantisation]
    settings = {"exact": asked.exact_trace, "probes": asked.probes, "rtol": asked.rtol, "atol": asked.atol}
    found = over(by_flow(key, levels, dequantise=dequantise, draws=asked.draws, prediction=prediction, **settings))
    if not np.isfinite(found.bits_per_dim):
        raise ValueError("the ODE's solver didn't arrive: allow larger errors, --rtol and --atol")
    trace = "exact trace" if asked.exact_trace else f"probes {asked.probes}"
    how = f"probability-flow ODE, {trace}, dequantisation {asked.dequantisation}"
    if processes.writes():
        print(f"{found.bits_per_dim:.4f} +- {found.standard_error:.4f} bits/dim, {found.num_images} images, {how}")
        print("   ".join(f"{name} {value:.4g}" for name, value in found.parts.items()))
    return {
        "bits_per_dim": found.bits_per_dim,
        "standard_error": found.standard_error,
        **found.parts,
        **settings,
        "dequantisation": asked.dequantisation,
        "draws": asked.draws,
    }


def _measure(asked: Flags, workdir: files.Place, config: Config) -> None:
    from tqdm import tqdm

    from ddpm_jax import data, nets
    from ddpm_jax.evaluation import likelihood
    from ddpm_jax.figures import plots
    from ddpm_jax.training import bits, processes, run

    flags.begin(asked.launch)
    source = data.load(asked.data)
    bits.reader(config, source)  # what it refuses is refused before the run is read
    parts, state = run.load(workdir, step=asked.checkpoint)
    params = state.params if asked.raw else state.ema
    reading = {"variance": asked.variance, "clip": asked.clip, "decoder": asked.decoder}
    per_batch, how, reading = bits.bound(parts, state, seed=asked.seed, num_t=asked.num_t, **reading)
    num = min(len(source), asked.num or len(source))
    denoise = nets.denoiser(parts.module, params)

    def over(per_batch: likelihood.PerBatch) -> likelihood.Likelihood:
        with tqdm(total=num, desc="measuring", unit="image", disable=not processes.writes()) as bar:
            return bits.over(per_batch, parts, params, source, num, batch_size=asked.batch_size, on_batch=bar.update)

    found = over(per_batch)
    by_ode = {"ode": _by_ode(asked, parts, denoise, over)} if asked.ode else {}
    if not processes.writes():
        return
    plain = {
        "bits_per_dim": found.bits_per_dim,
        "standard_error": found.standard_error,
        "num_images": found.num_images,
        **found.parts,
        "how": how,
        **reading,
        "step": int(state.step),
        "weights": "last" if asked.raw else "averaged",
        "seed": asked.seed,
        "data": records.to_dict(asked.data),
        **by_ode,
    }
    files.write(workdir / "likelihood.json", (json.dumps(plain, indent=1) + "\n").encode())
    print(f"{found.bits_per_dim:.4f} +- {found.standard_error:.4f} bits/dim, {found.num_images} images, {how}")
    print("   ".join(f"{name} {value:.4g}" for name, value in found.parts.items()))
    written = "likelihood.json"
    if found.terms is not None and found.curve is not None:
        plots.save(plots.bound(found.terms, *found.curve), workdir / "likelihood.png")
        written = "likelihood.json and likelihood.png"
    print(f"wrote {written} into {workdir}")


if __name__ == "__main__":
    flags.run(main)
