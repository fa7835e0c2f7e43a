"""What a run is: frozen records that train.py turns into flags and that config.json keeps.

A preset (`configs/NAME.py`) is one `Config`. Library functions never see it: they take the few values they need.
"""

import dataclasses
import json
from typing import Annotated

import tyro

from ddpm_jax import files, records
from ddpm_jax.networks import ADM, VDM, Classifier, NoiseNet, UNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Which images, and how they are read."""

    source: str = "digits"
    """digits, mnist5k, photos, fashion_mnist, tfds, folder or array."""
    name: str = ""
    """The data set's name, for source tfds (cifar10, lsun/bedroom, ...)."""
    path: str = ""
    """The folder or file to read, or the TFDS data_dir; empty for the source's usual place."""
    split: str = "train"
    shape: tuple[int, int, int] = (8, 8, 1)
    """Height, width and channels that the network trains on."""
    shrink: int = 1
    """Average squares of so many pixels a side into one, for the base of a cascade; `shape` is what is left."""
    flip: bool = False
    """Mirror each image left to right with probability one half."""
    stream: bool = False
    """Read images when they are needed (Grain) rather than the whole set into memory."""
    threads: int = 2
    """Threads that read and decode ahead of the steps, in each worker if there are any."""
    workers: int = 0
    """Processes that read and decode ahead, for sources that aren't in memory; 0 for threads alone."""
    ahead: int = 2
    """Batches that wait on the devices for their step."""
    on_device: bool = False
    """Keep the whole set in the memory of every device, for sets of at most 2 GiB."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The forward process and what the network is asked to predict."""

    schedule: str = "linear"
    num_steps: int = 1000
    schedule_args: tuple[tuple[str, float], ...] = ()
    """Further arguments of the schedule, as NAME VALUE pairs: --diffusion.schedule-args beta_end 0.01"""
    zero_terminal_snr: bool = False
    log_snr_shift: float = 1.0
    """Shift factor s: 2 log s is added to every log-SNR."""
    time_range: float = 1000.0
    """The network is told t * time_range / T. 1000, but for published networks of T steps that were told t itself."""
    learn_schedule: bool = False
    """Learn the noise schedule with the network (needs objective continuous); `schedule` is where it starts."""
    prediction: str = "eps"
    """eps, x0, v, score, mean or flow."""
    variance: str = "large"
    """Of a step back: large (beta), small (the posterior's) or medium:F between them (F = 1 is large); or said by the
    network, which then has twice the output channels: learned, or learned_range (between small and large)."""
    objective: str = "simple"
    """simple (weighted error), hybrid (simple, and the bound for the variance alone), vlb (the bound) or continuous; or
    classifier, log p(class | x_t), for --net classifier."""
    vlb_weight: float = 0.001
    """What the bound counts for in the hybrid, in bits/dim, beside the mean squared error."""
    weighting: str = "simple"
    """For the simple and the hybrid objective: what a noise level counts for (diffusion/weighting_zoo.py has them), or
    a function of your own, FILE:FUNCTION (training/own_weighting.py)."""
    weighting_args: tuple[tuple[str, float], ...] = ()
    """Further arguments of the weighting, as NAME VALUE pairs: --diffusion.weighting-args gamma 5"""
    norm: str = "l2"
    """For the simple and the hybrid objective: what an error of the prediction counts for, l2 (its square), l1, huber
    or pseudo_huber."""
    norm_args: tuple[tuple[str, float], ...] = ()
    """Further arguments of the norm, as NAME VALUE pairs: --diffusion.norm-args delta 0.1 (huber), c 0.01
    (pseudo_huber)"""
    learn_uncertainty: bool = False
    """For the simple objective: learn the mean loss of each noise level and divide by it, so that all count alike
    (Karras et al. 2024). The loss that is logged is then of another kind and may be negative."""
    offset_noise: float = 0.0
    """For the simple and the hybrid objective: deviation of a constant added to the noise of each image and channel."""
    draw_t: str = "uniform"
    """How training draws t: uniform, stratified, antithetic, range, log_normal, logit_normal, second_moment or
    adaptive."""
    draw_t_args: tuple[tuple[str, float], ...] = ()
    """Further arguments of draw_t, as NAME VALUE pairs: --diffusion.draw-t-args mean -1.2 std 1.2"""
    correct_draw: bool = True
    """Weigh each image so that the expected loss stays that of a uniform t. Off, the draw is itself a weighting."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill:
    """A network of few steps, taught by another's; python -m ddpm_jax.cli.distill sets most of this."""

    method: str = ""
    """progressive, consistency or consistency_training, which needs no teacher; empty for ordinary training."""
    teacher: str = ""
    """A run's folder, read when training begins: checkpoints then hold its weights."""
    average: bool = True
    """Take the teacher's averaged weights; off, those of its last step."""
    steps: int = 0
    """For progressive: DDIM steps of the student. The teacher takes twice as many."""
    levels: tuple[int, int] = (10, 1280)
    """For consistency: steps from noise to image that answers are held together over, first and last."""
    growth: str = "doubling"
    """How their number grows: doubling (Song & Dhariwal 2023) or square_root (Song et al. 2023)."""
    mu: float = 0.0
    """For consistency: decay of the target network at the first number of levels; 0 for the network itself."""
    sigma_max: float = 80.0
    """For consistency: sigma / alpha of the noisiest level, where images are drawn from."""
    mean: float = -1.1
    """For consistency: of ln(sigma / alpha), as levels are drawn."""
    std: float = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How parameters move."""

    name: str = "adam"
    """adam or adamw."""
    learning_rate: float = 2e-4
    warmup_steps: int = 5000
    decay: str = "constant"
    """After the warm-up: constant, or cosine or linear to zero at the last step."""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    """For adamw; biases don't decay."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 for no clipping."""
    ema_decay: float = 0.9999
    """Decay of the averaged weights once warm; it starts as (1 + step) / (10 + step)."""
    ema_sigma_rels: tuple[float, ...] = ()
    """Lengths, as shares of the run so far, of further averages (Karras et al. 2024): from snapshots of two, 0.05 0.1,
    sample.py makes one of any length. Each takes the memory of the parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """What leads images on: see sampling/guidance.py."""

    guidance: float = 1.0
    """Weight w of classifier-free guidance, eps_null + w (eps_class - eps_null); 1 for none."""
    guidance_rescale: float = 0.0
    """For the same: how far the deviation of a guided prediction goes back to that of the class's own, 0 to 1."""
    guidance_interval: tuple[float, ...] = ()
    """LOW HIGH: guide, in all ways, where LOW < sigma <= HIGH only, sigma being that of x_0 + sigma eps."""
    guidance_ramp: str = "none"
    """linear or cosine: all weights rise from none at the interval's HIGH, or the noisiest level, to the whole at its
    LOW, or the least noisy, rather than holding within it."""
    classifier: str = ""
    """The folder of a classifier's run (--net classifier), whose slope for a class is followed."""
    classifier_weight: float = 1.0
    autoguidance: str = ""
    """A worse network to lead away from: the STEP of an earlier checkpoint, another run's folder, or FOLDER@STEP."""
    autoguidance_weight: float = 2.0
    """Weight w of eps_worse + w (eps - eps_worse); 1 for none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images are drawn, in training's previews and in sample.py."""

    sampler: str = "ddpm"
    """ddpm, ddim, ...: sampling/samplers.py has them all."""
    sampler_args: tuple[tuple[str, float | str], ...] = ()
    """Further settings of the sampler, as NAME VALUE pairs: --sampling.sampler-args order 3"""
    steps: tuple[int, ...] = ()
    """How many steps; several numbers (spacing even) for as many sections of the schedule; empty for all."""
    spacing: str = ""
    """Where they lie: even, ddim, leading, trailing, quadratic, log_snr, karras, edm or beta; empty for the sampler's
    own: edm for heun, edm, dpm2, dpm2_ancestral, lms, rk4 and pndm, log_snr for dpm_solver, even for the others."""
    spacing_args: tuple[tuple[str, float], ...] = ()
    """Further settings of the spacing, as NAME VALUE pairs: --sampling.spacing-args rho 5"""
    process: str = ""
    """Walk along vp, sub_vp, ve, edm or flow, whatever the network was trained on; empty for its own schedule."""
    variance: str = ""
    """For ddpm: large, small, medium:F, learned or learned_range; empty for the run's own, diffusion.variance."""
    eta: float | None = None
    """For ddim, euler_ancestral, dpm2_ancestral and dpm_solver_pp_sde: 0 is deterministic, 1 as noisy as ddpm with the
    small variance; the sampler's own if not given (ddim's is 0)."""
    dtype: str = ""
    """What the run's network draws in: float32, or bfloat16 with its kernels rounded once; empty for its own."""
    clip: bool = True
    """Keep the prediction of x_0 in [-1, 1]."""
    dynamic_threshold: float = 0.0
    """Clip each image to this quantile of its own values, 0.995 say, and divide by it; 0 for [-1, 1]."""
    guidance: Annotated[Guidance, tyro.conf.arg(name="")] = Guidance()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a run writes and how often, in steps."""

    log_every: int = 100
    sample_every: int = 5000
    num_samples: int = 64
    """Images in a preview."""
    preview_steps: int = 50
    """DDIM steps for a preview, always from the same noise, so that pictures show training and nothing else."""
    checkpoint_every: int = 1000
    keep_last: int = 3
    keep_every: int = 0
    """Also keep for good each checkpoint whose step is a multiple of this; 0 for none."""
    evaluate_every: int = 0
    """Steps between quick evaluations (cli.evaluate --quick), at checkpoints; 0 for none."""
    evaluate_num: int = 2000
    """Images in one."""
    evaluate_features: tuple[str, ...] = ()
    """What images are compared by in these: see cli.evaluate. The first one's Frechet distance says which is best."""
    keep_best: int = 1
    """Also keep for good so many of the evaluated checkpoints, the best ones."""
    ema_snapshot_every: int = 0
    """Steps between snapshots of optimizer.ema_sigma_rels, all kept, in WORKDIR/ema; a hundred in a run are plenty."""
    steps_per_dispatch: int = 1
    """Training steps in one call to the device; more than one helps accelerators and hurts CPUs."""
    on_nonfinite: str = "stop"
    """A loss that isn't finite: stop, or skip the update and count it."""
    bins: int = 0
    """Bins of log-SNR by which the log sorts the error of eps; 0 for none."""
    gradients_every: int = 0
    """Steps between statistics of the gradient by bin; 0 for never. Each takes about 4 steps a bin: with 12 bins, every
    2000 steps is 2.4 % of a run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """How a run lies on its devices; a run may go on with other numbers than it began with."""

    fsdp: int = 1
    """Devices that share one copy of parameters, average and optimizer state. The batch is split over all devices."""
    accumulate: int = 1
    """Parts that a batch is taken in, one after the other: less memory, the same gradient in expectation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    seed: int = 0
    steps: int = 800_000
    batch_size: int = 128
    data: Data = Data()
    diffusion: Diffusion = Diffusion()
    distill: Distill = Distill()
    net: tyro.conf.AvoidSubcommands[UNet | NoiseNet | ADM | VDM | Classifier] = UNet()
    optimizer: Optimizer = Optimizer()
    sampling: Sampling = Sampling()
    run: Run = Run()
    devices: Devices = Devices()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """How the processes of a run find each other; nothing is needed for a single one."""

    auto: bool = False
    """One of several processes that JAX finds by itself: on Cloud TPU, under SLURM, Open MPI or Kubernetes."""
    coordinator: str = ""
    """HOST:PORT of process 0, where JAX can't find it by itself."""
    num_processes: int = 0
    process_id: int = -1
    timeout: int = 100
    """Seconds after which a process that doesn't answer is given up, and the others end."""


def write(config: Config, path: files.Place) -> None:
    """Write config.json whole or not at all."""
    files.write(path, (json.dumps(records.to_dict(config), indent=1) + "\n").encode())


def read(path: files.Place) -> Config:
    """Read config.json.

    Raises:
        FileNotFoundError: if there is none, saying what a run's folder holds.
        ValueError: if it isn't what `write` wrote.
    """
    if not files.is_file(path):
        raise FileNotFoundError(f"{path.parent} is no run's folder: it has no {path.name} (train.py writes one)")
    try:
        plain = json.loads(path.read_text())
        drawn = plain.get("sampling") if isinstance(plain, dict) else None
        if isinstance(drawn, dict) and drawn.get("sampler", "ddpm") != "ddim" and drawn.get("eta") == 0:
            del drawn["eta"]  # once the default, for samplers that had no use for it
        return records.from_dict(plain, Config, path.name)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
