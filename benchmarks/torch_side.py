"""The PyTorch side: diffusers' UNet2DModel, trained or sampled from as its users do. Started by `sides.start`.

It knows nothing of JAX: all it needs is in the job.
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import machine
import sides

from ddpm_jax import heap

Job = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Torch:
    """PyTorch, set up as a job asks for."""

    torch: Any
    device: Any
    dtype: Any
    layout: Any

    def wait(self) -> None:
        """Until the device has done all that it was told."""
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def half(self) -> contextlib.AbstractContextManager:
        """Autocast, if the job is of bfloat16."""
        if self.dtype is self.torch.float32:
            return contextlib.nullcontext()
        return self.torch.autocast(self.device.type, self.dtype)


def set_up(job: Job) -> Torch:
    """Threads, precision, device and layout of a job."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return Torch(
        torch=torch,
        device=torch.device("cuda" if job["device"] == "gpu" else "cpu"),
        dtype=getattr(torch, job["dtype"]),
        layout=torch.channels_last if job.get("channels_last") else torch.contiguous_format,
    )


def network(side: Torch, job: Job) -> Any:
    """The UNet2DModel of a job on its device and in its layout."""
    from diffusers import UNet2DModel

    return UNet2DModel(**job["net"]).to(side.device, memory_format=side.layout)


def training(side: Torch, job: Job) -> tuple[Callable[[], float], dict[str, Any]]:
    """A whole training step, as a function that gives back the loss; and facts of it."""
    from diffusers import DDPMScheduler

    torch = side.torch
    model = network(side, job).train()
    scheduler = DDPMScheduler(num_train_timesteps=job["num_steps"])
    params = list(model.parameters())
    ema = [p.detach().clone() for p in params]
    optimizer = torch.optim.Adam(params, lr=job["rate"], betas=tuple(job["betas"]), fused=True)
    height, width, channels = job["shape"]
    clean = torch.rand(job["batch"], channels, height, width, device=side.device) * 2 - 1
    clean = clean.to(memory_format=side.layout)
    call = torch.compile(model) if job.get("compile") else model

    def step() -> float:
        noise = torch.randn_like(clean)
        t = torch.randint(0, job["num_steps"], (job["batch"],), device=side.device)
        noised = scheduler.add_noise(clean, noise, t)
        with side.half():
            loss = torch.nn.functional.mse_loss(call(noised, t, return_dict=False)[0].float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, job["clip_norm"], foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(ema, params, 1 - job["ema_decay"])
        value = loss.item()
        side.wait()
        return value

    begun = time.perf_counter()
    step()
    first = time.perf_counter() - begun
    return step, {"params": sum(p.numel() for p in params), "first_seconds": first}


def products(side: Torch) -> Callable[[str], dict[str, float]]:
    """The command "gemm DTYPE"."""
    torch = side.torch

    def gemm(dtype: str) -> dict[str, float]:
        def product(n: int) -> Callable[[], None]:
            a, b = (torch.randn(n, n, device=side.device).to(getattr(torch, dtype)) for _ in range(2))

            def multiply() -> None:
                torch.matmul(a, b)
                side.wait()

            return multiply

        with torch.inference_mode():
            return {"flops": machine.peak(product)}

    return gemm


def used(side: Torch) -> Callable[[str], dict[str, Any]]:
    """The command "memory": bytes now and at the peak, of the process or of the accelerator."""

    def memory(_: str) -> dict[str, Any]:
        found: dict[str, Any] = {"resident": machine.resident()}
        if side.device.type == "cuda":
            found["device"] = {"peak": side.torch.cuda.max_memory_allocated()}
        return found

    return memory


def sampling(side: Torch, job: Job) -> tuple[Callable[[], float], dict[str, Any]]:
    """The loop of diffusers' DDIMPipeline from noise to images in host memory; weights in the job's own dtype."""
    from diffusers import DDIMScheduler

    torch = side.torch
    model = network(side, job).eval().to(side.dtype)
    call = torch.compile(model) if job.get("compile") else model
    scheduler: Any = DDIMScheduler(num_train_timesteps=job["num_steps"])
    height, width, channels = job["shape"]

    def draw() -> float:
        with torch.inference_mode():
            images = torch.randn(job["batch"], channels, height, width, device=side.device, dtype=side.dtype)
            images = images.to(memory_format=side.layout)
            scheduler.set_timesteps(job["steps"])
            for t in scheduler.timesteps:
                output = call(images, t, return_dict=False)[0]
                images = scheduler.step(output, t, images).prev_sample
            return float(images.float().cpu().numpy().mean())

    begun = time.perf_counter()
    draw()
    first = time.perf_counter() - begun
    return draw, {"params": sum(p.numel() for p in model.parameters()), "first_seconds": first}


TASKS = {"train": training, "sample": sampling}


def main() -> None:
    job = json.loads(sys.argv[1])
    sides.pin(job["threads"])
    if job.get("hold"):
        heap.hold()
    # All that is imported is there before memory is counted; diffusers imports when a name is first asked for.
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel, utils  # noqa: F401

    utils.logging.set_verbosity_error()
    side = set_up(job)
    begun = machine.resident()
    machine.forget_peak()
    unit, facts = TASKS[job["task"]](side, job)
    commands = {"go": sides.repeated(unit), "gemm": products(side), "memory": used(side), "forget": machine.forget}
    sides.serve({**facts, "resident": begun, "built": machine.resident()}, commands)


if __name__ == "__main__":
    main()
