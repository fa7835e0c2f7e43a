"""The folder of a run as one might look, without any training: for tests of its page."""

import json

import numpy as np
from PIL import Image
from test_page import Reader

from ddpm_jax import config as config_lib
from ddpm_jax.config import Config, Diffusion, Run
from ddpm_jax.training import run_report

SMALL = Config(steps=400, diffusion=Diffusion(num_steps=50, schedule="cosine"), run=Run(bins=4))
START = {
    "time": "2026-01-02T03:04:05+00:00",
    "step": 0,
    "until": 200,
    "seconds": 3600.0,
    "command": "python train.py small",
    "python": "3.11.9",
    "packages": {"jax": "0.8.0", "flax": "0.12.0"},
    "devices": {"count": 4, "kind": "TPU v4", "platform": "tpu"},
    "commit": "abc123",
    "parameters": 1234567,
    "changed": {"steps": 400},
}
FIGURE = {
    "name": "FD-EffNetLite0@64 (PCA-64)", "value": 11.6, "standard_error": 0.4, "low": 10.8, "high": 12.4,
    "how": "bootstrap over images, 100 draws", "better": "lower",
    "floor": {"value": 9.8, "standard_error": 0.3, "low": 9.2, "high": 10.4, "what": "held-out images"},
}  # fmt: skip


def evaluation(step, **changes):
    return {
        "step": step, "weights": "ema", "num_images": 2000, "seed": 1, "quick": False, "seconds": 41.2,
        "sampling": {"sampler": "ddim", "steps": [50]},
        "features": [{"name": "EffNetLite0@64", "preprocessing": "/128"}],
        "reference": {"what": "digits train", "num_images": 1500}, "figures": [FIGURE | changes], "nearest": None,
    }  # fmt: skip


def line(step, **changes):
    errors = {f"eps_error/log_snr_{middle:.2f}": 0.1 * 1.1**-middle for middle in (-6, -2, 2, 6)}
    plain = {"step": step, "skipped": 0.0, "loss": 1 / step, "grad_norm": 2 / step, "loss_q1": 0.5, "loss_q4": 0.01}
    return plain | errors | {"images_per_second": 640.0, "input_bound": 0.01, "learning_rate": 1e-3} | changes


def jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def picture(path, shade, side=16):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((side, side), shade, np.uint8)).save(path)


def folder(parent):
    """A run half-way, with everything that a folder can hold."""
    run = parent / "half-way"
    config_lib.write(SMALL, run / "config.json")
    (run / "metrics.jsonl").write_text(jsonl(line(step) for step in range(10, 201, 10)))
    (run / "environment.jsonl").write_text(jsonl([START | {"until": 100}, START | {"step": 100, "packages": {}}]))
    for step in (50, 100, 200):
        picture(run / "samples" / f"step_{step:08d}.png", step)
    frames = [Image.new("L", (8, 8), shade) for shade in (10, 120, 250)]
    frames[0].save(run / "samples" / "sample_denoising.gif", save_all=True, append_images=frames[1:])
    picture(run / "samples" / "sample.png", 7)
    (run / "evaluation").mkdir()
    for each in (evaluation(100, value=20.0), evaluation(200) | {"nearest": "200_nearest.png"}):
        (run / "evaluation" / f"{each['step']}.json").write_text(json.dumps(each))
    picture(run / "evaluation" / "200_nearest.png", 9)
    (run / "likelihood.json").write_text(json.dumps({"bits_per_dim": 3.25, "standard_error": 0.01, "prior": 0.002}))
    picture(run / "likelihood.png", 3)
    (run / "checkpoints" / "200").mkdir(parents=True)
    (run / "checkpoints" / "200" / "array").write_bytes(b"0" * 1500)
    return run


def told(run):
    """The page of a folder, read back."""
    return Reader(run_report.write(run).read_text(encoding="utf-8"))


def words(reader):
    return " ".join(reader.text.split())
