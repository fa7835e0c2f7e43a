"""Records Hugging Face diffusers' schedulers on a world with an exact denoiser: diffusers_samplers.npz and .json.

    python -m venv env
    env/bin/pip install torch==2.13.0 diffusers==0.42.1 scipy torchsde   # PyTorch for CPU is enough
    env/bin/python tests/golden/record_diffusers_samplers.py

Pixels are independent draws of a mixture of two Gaussians, so that E[x_0 | x_t] is known in closed form. Every case
runs one scheduler from a fixed start for a few steps; x after each call is kept. Draw k of a case is `noise[k]`: it
stands in for `randn_tensor`, and for the Brownian tree of DPMSolverSDE. The denoiser is asked at the noise level that
the scheduler uses, not at a rounded timestep, and answers what the scheduler expects (eps, v, flow, EDM's F). A case is
added by writing its scheduler, steps and config into the json and running this again; the rest is filled in.

diffusers works its tables and many steps in float32. Here each scheduler module is given a `torch` and an `np` whose
float32 is float64, so that the recording is good to about 1e-13; each case is run as shipped too, and the largest
difference stands in the json as `float32_gap`: it is rounding, the method is the same.

In the npz, for the case NAME of `cases` in the json, N calls of `scheduler.step`:

    NAME        [N, 2, 6] x after each call, in the scheduler's own scaling (`space` in the json)
    NAME/steps  [N, 3] the timestep given, the sigma that the denoiser was asked at, the sigma of the x that came back

where sigma is sqrt((1 - alpha_bar) / alpha_bar) (infinite at alpha_bar = 0), or for `space` "flow" the weight of noise.
`x_T`, `x_0` [2, 6] are where cases start, `noise` [K, 2, 6] the draws, `timesteps/...` and `sigmas/...` whole spacings.
"""

import contextlib
import importlib
import json
import logging
import warnings
from pathlib import Path
from types import SimpleNamespace as Record
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules

HERE = Path(__file__).parent
WEIGHTS, MEANS, DEVIATIONS = (np.array(v) for v in ([0.4, 0.6], [-0.5, 0.6], [0.3, 0.2]))
SHAPE = (2, 6)
T = 1000

rng = np.random.default_rng(0)
X_T = rng.standard_normal(SHAPE)
component = rng.integers(0, 2, SHAPE)
X_0 = MEANS[component] + DEVIATIONS[component] * rng.standard_normal(SHAPE)
NOISE = rng.standard_normal((26, *SHAPE))
MASK = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])  # RePaint: 1 is known


def posterior(x: np.ndarray, alpha: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """E[x_0 | x] and E[eps | x] for x = alpha x_0 + sigma eps, by Bayes' rule over the two components."""
    variances = alpha**2 * DEVIATIONS**2 + sigma**2
    away = x[..., None] - alpha * MEANS
    logits = np.log(WEIGHTS) - 0.5 * np.log(variances) - away**2 / (2 * variances)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    x_0 = (shares * (MEANS + alpha * DEVIATIONS**2 * away / variances)).sum(-1)
    return x_0, (shares * sigma * away / variances).sum(-1)


class Wide:
    """A module whose float32 is float64."""

    def __init__(self, module: Any):
        self._module = module
        self.float32 = module.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextlib.contextmanager
def patched(cls: type, drawn: list[int], wide: bool):
    """The scheduler's module with our noise, each draw noted in `drawn`; with float64 for float32 if `wide`."""
    module = importlib.import_module(cls.__module__)

    def draw(*_: Any, **__: Any) -> torch.Tensor:
        drawn.append(len(drawn))
        return torch.from_numpy(NOISE[drawn[-1]]).reshape(*SHAPE, 1, 1)

    new = {"randn_tensor": draw, "BrownianTreeNoiseSampler": lambda *_: draw}
    if wide:
        new |= {"torch": Wide(torch), "np": Wide(np)}
    old = {name: getattr(module, name) for name in new if hasattr(module, name)}
    torch.set_default_dtype(torch.float64 if wide else torch.float32)
    for name in old:
        setattr(module, name, new[name])
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        for name, value in old.items():
            setattr(module, name, value)


def table_sigma(s: Any, t: int) -> float:
    """The table's sigma at t; below 0 lies what the scheduler takes for the end."""
    final = getattr(s, "final_alpha_cumprod", torch.tensor(1.0))
    bar = float(s.alphas_cumprod[t] if t >= 0 else final)
    return float(np.sqrt((1 - bar) / bar)) if bar > 0 else np.inf


def asked_sigma(s: Any, i: int, t: Any) -> float:
    """The sigma of the denoiser's input at call i."""
    if getattr(s, "mid_point_sigma", None) is not None:  # DPMSolverSDE between its two stages
        return float(s.mid_point_sigma)
    if hasattr(s, "sigmas_interpol") and not s.state_in_first_order:  # KDPM2 likewise
        return float(s.sigmas_interpol[i - isinstance(s, diffusers.KDPM2AncestralDiscreteScheduler)])
    if hasattr(s, "sigmas"):
        return float(s.sigmas[i])
    if isinstance(s, diffusers.IPNDMScheduler):
        i = i + (s.begin_index or 0)
        return float(s.betas[i] / s.alphas[i]) if s.alphas[i] > 0 else np.inf
    return table_sigma(s, int(t))


def came_back(s: Any, ts: list[int], asked: list[float], pairs: list[int]) -> list[float]:
    """The sigma of x after each call."""
    if pairs:
        return [table_sigma(s, end) for end in pairs]
    if isinstance(s, diffusers.DDPMScheduler):
        return [table_sigma(s, int(s.previous_timestep(t))) for t in ts]
    if isinstance(s, diffusers.DDIMScheduler):  # whatever the spacing
        return [table_sigma(s, t - T // (s.num_inference_steps or 1)) for t in ts]
    if isinstance(s, diffusers.DDIMInverseScheduler):  # asked with x still at the level before
        return asked
    return [*asked[1:], float(s.sigmas[-1]) if hasattr(s, "sigmas") else 0.0]


def answer(x: torch.Tensor, sigma: float, space: str, prediction: str) -> torch.Tensor:
    """The exact network's output for x, as the scheduler holds it, at that sigma."""
    at = x.double().reshape(SHAPE).numpy()
    alpha = 1 - sigma if space == "flow" else 1 / np.sqrt(1 + sigma**2)
    level = sigma if space == "flow" else np.sqrt(1 - alpha**2) if np.isinf(sigma) else sigma * alpha
    x_0, eps = posterior(at * alpha if space == "sigma" else at, alpha, level)
    if prediction == "F":  # Karras et al. 2022, Table 1, with sigma_data = 0.5
        skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / np.sqrt(sigma**2 + 0.25)
        said = (x_0 - skip * at) / out
    else:
        said = {"epsilon": eps, "v_prediction": alpha * eps - level * x_0, "flow": eps - x_0}[prediction]
    return torch.from_numpy(said).reshape(*SHAPE, 1, 1)


def run(case: Record, wide: bool) -> Record:
    """One scheduler from start to end."""
    cls = getattr(diffusers, case.scheduler + "Scheduler")
    drawn, xs, ts, asked, pairs, counts = [], [], [], [], [], []
    with patched(cls, drawn, wide):
        s = cls(**case.config)
        s.set_timesteps(case.steps)
        if hasattr(s, "set_begin_index"):
            s.set_begin_index(case.begin)
        if case.scheduler == "PNDM":  # it alone knows which level a call ends at
            inner = s._get_prev_sample
            s._get_prev_sample = lambda x, t, end, e: (pairs.append(int(end)), inner(x, t, end, e))[1]
        scale = float(s.init_noise_sigma) if case.space == "sigma" else 1.0
        x = scale * torch.from_numpy(X_0 if case.scheduler == "DDIMInverse" else X_T).reshape(*SHAPE, 1, 1)
        for i, t in enumerate(s.timesteps[case.begin :]):
            if case.space == "sigma":
                s.scale_model_input(x, t)
            asked.append(asked_sigma(s, i, t))
            x = s.step(answer(x, asked[-1], case.space, case.prediction), t, x, **case.step).prev_sample
            ts.append(t.item())
            xs.append(x.double().reshape(SHAPE).numpy())
            counts.append(len(drawn) - sum(counts))
        rows = np.stack([ts, asked, came_back(s, ts, asked, pairs)], axis=1)
    return Record(x=np.stack(xs), rows=rows, counts=counts, scale=scale)


def run_repaint(case: Record, wide: bool) -> Record:
    """RePaint's walk down and up again as diffusers' pipeline drives it; on the way up nothing is asked (nan)."""
    drawn, xs, rows, counts = [], [], [], []
    with patched(diffusers.RePaintScheduler, drawn, wide):
        s = diffusers.RePaintScheduler(**case.config)
        s.set_timesteps(case.steps, jump_length=2, jump_n_sample=2)
        x, known, mask = (torch.from_numpy(v).reshape(-1, 6, 1, 1) for v in (X_T, X_0, MASK))
        before = case.steps
        for t in s.timesteps.tolist():
            sigma = table_sigma(s, t)
            if t < before:
                x = s.step(answer(x, sigma, "vp", "epsilon"), t, x, known, mask, return_dict=False)[0]
                rows.append((t, sigma, table_sigma(s, t - 1)))
            else:
                x = s.undo_step(x, before)
                rows.append((before, np.nan, table_sigma(s, before)))
            before = t
            xs.append(x.double().reshape(SHAPE).numpy())
            counts.append(len(drawn) - sum(counts))
    return Record(x=np.stack(xs), rows=np.array(rows), counts=counts, scale=1.0)


LINEAR = {"num_train_timesteps": T, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def described(entry: dict[str, Any]) -> Record:
    """A case of the json, with what follows from the scheduler's name."""
    name = entry["scheduler"]
    own = name.startswith(("IPNDM", "EDM", "Flow"))  # without the betas
    in_sigma = name.startswith(("Euler", "Heun", "KDPM2", "LMS", "EDM", "DPMSolverSDE"))
    said = {"EDM": "F", "Flo": "flow", "IPN": "v_prediction"}.get(name[:3], "epsilon")
    return Record(
        scheduler=name,
        config=entry["config"] if own else LINEAR | entry["config"],
        steps=entry["steps"],
        step=entry.get("step", {}),
        begin=entry.get("begin", 0),
        space="flow" if said == "flow" else "sigma" if in_sigma else "vp",
        prediction=entry["config"].get("prediction_type", said),
    )


def record(name: str, entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Runs a case into `arrays`; returns its entry with what was found."""
    case = described(entry)
    walk = run_repaint if case.scheduler == "RePaint" else run
    got, shipped = walk(case, True), walk(case, False)
    if not np.isfinite(got.x).all():
        raise ValueError(f"{name}: the scheduler returned numbers that are not finite")
    arrays[name], arrays[f"{name}/steps"] = got.x, got.rows
    given = {key: entry[key] for key in ("scheduler", "steps", "config", "step", "begin", "note") if key in entry}
    found = {"space": case.space, "prediction": case.prediction, "start_scale": got.scale}
    if sum(got.counts):
        found["draws"] = got.counts
    return given | found | {"float32_gap": float(f"{np.abs(got.x - shipped.x).max():.2g}")}


def spacings(arrays: dict[str, np.ndarray]) -> None:
    """Whole spacings of 1000 linear betas; from 999 steps on in float32, and the sigmas without their timesteps."""

    def note(key: str, scheduler: str, n: int, **config: Any) -> None:
        cls = getattr(diffusers, scheduler + "Scheduler")
        with patched(cls, [], True):
            s = cls(**config if scheduler.startswith(("EDM", "Flow")) else LINEAR | config)
            s.set_timesteps(n)
            ts = s.timesteps.numpy()
        even = "timestep_spacing" in config
        if even or (n < 999 and scheduler[:3] in ("Eul", "DPM")):
            whole = (ts == ts.round()).all()
            arrays[f"timesteps/{key}/{n}"] = ts.astype(np.int16 if whole else float if n < 999 else np.float32)
        if not even:
            arrays[f"sigmas/{key}/{n}"] = s.sigmas.numpy().astype(float if n < 999 else np.float32)

    for n in (10, 20, 50, 999, 1000):
        for spacing in ("leading", "trailing", "linspace"):
            for key, scheduler in (("ddim", "DDIM"), ("euler", "EulerDiscrete"), ("dpm", "DPMSolverMultistep")):
                note(f"{key}_{spacing}", scheduler, n, timestep_spacing=spacing)
        for kind in ("karras", "exponential", "beta"):
            note(kind, "EulerDiscrete", n, **{f"use_{kind}_sigmas": True})
        note("lu", "DPMSolverMultistep", n, use_lu_lambdas=True)
        if n < 999:
            note("edm", "EDMEuler", n)
            note("flow_shift3", "FlowMatchEulerDiscrete", n, shift=3.0)


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    target = HERE / "diffusers_samplers.json"
    told = json.loads(target.read_text())
    arrays = {"x_T": X_T, "x_0": X_0, "noise": NOISE, "mask": MASK}
    told["cases"] = {name: record(name, entry, arrays) for name, entry in told["cases"].items()}
    spacings(arrays)
    np.savez_compressed(HERE / "diffusers_samplers.npz", **arrays)
    told |= {
        "versions": {"diffusers": diffusers.__version__, "torch": torch.__version__.split("+")[0]},
        "world": {"weights": [*WEIGHTS], "means": [*MEANS], "deviations": [*DEVIATIONS]},
        "schedule": LINEAR,
        "ays": AysSchedules,
    }
    # One line a case, to be read and edited.
    lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in told.pop("cases").items()]
    rest = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in told.items()]
    target.write_text("{\n" + ",\n".join(rest) + ',\n "cases": {\n' + ",\n".join(lines) + "\n }\n}\n")


if __name__ == "__main__":
    main()
