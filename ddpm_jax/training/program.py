"""A training step that was compiled beforehand: a file, so that a run starts without compiling.

Tried with one process of CPU devices, not on TPUs or GPUs. The file holds machine code and what JAX needs to call it,
which it unpickles: load only files that you made.
"""

import importlib.metadata
import pickle
from typing import Any

import jax
import jaxlib
import msgpack
from jax.experimental import serialize_executable

from ddpm_jax import files, records
from ddpm_jax.training.run import Parts, abstract_arguments, make_train_step
from ddpm_jax.training.step import TrainStep


def save(program: Any, parts: Parts, path: files.Place) -> None:
    """Write a compiled step (`planning.compile_step`) whole or not at all."""
    code, _, _ = serialize_executable.serialize(program)
    packed: Any = msgpack.packb({"made_for": _made_for(parts), "code": code})
    files.write(path, packed)


def read(path: files.Place, parts: Parts) -> bytes:
    """The machine code of a step for these parts, not loaded yet.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it isn't one, or was made for other devices, versions or another config, naming what differs.
    """
    if not files.is_file(path):
        raise FileNotFoundError(f"--program: there is no file {path}; python -m ddpm_jax.cli.plan ... --save makes one")
    try:
        found = msgpack.unpackb(path.read_bytes())
        made_for, code = found["made_for"], found["code"]
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"--program: {path} is no compiled step: {error!r}"[:300]) from None
    if wrong := records.differences(made_for, _made_for(parts)):
        told = "; ".join(f"{name} {made!r}, here {here!r}" for name, (made, here) in wrong.items())
        raise ValueError(f"--program: {path} was made for {told}")
    return code


def load(path: files.Place, parts: Parts) -> TrainStep:
    """A step to train these parts with, in place of `make_train_step`.

    Raises:
        FileNotFoundError, ValueError: as `read`; and ValueError if these devices can't load it.
    """
    code = read(path, parts)
    arguments = abstract_arguments(parts)
    answer = jax.eval_shape(make_train_step(parts), *arguments)
    trees = jax.tree.structure((arguments, {})), jax.tree.structure(answer)
    devices = list(parts.mesh.devices.flat)
    try:
        return serialize_executable.deserialize_and_load(code, *trees, execution_devices=devices)
    except (KeyError, EOFError, pickle.UnpicklingError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(f"--program: {path} can't be loaded on these devices: {error!r}"[:300]) from error


def _made_for(parts: Parts) -> dict[str, Any]:
    """All that a compiled step depends on."""
    device = parts.mesh.devices.flat[0]
    config = records.to_dict(parts.config)
    kept = {
        name: config[name] for name in ("steps", "batch_size", "diffusion", "distill", "net", "optimizer", "devices")
    }
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "libtpu": _version("libtpu") if device.platform == "tpu" else "",
        "devices": f"{parts.mesh.size} {device.device_kind}",
        "layout": [[d.id, d.process_index, *getattr(d, "coords", ())] for d in parts.mesh.devices.flat],
        # A user's own weighting may have changed under its name.
        "weighting": [float(factor) for factor in parts.weighting(parts.schedule.log_snr[::50])],
        "shape": config["data"]["shape"],
        "steps_per_dispatch": config["run"]["steps_per_dispatch"],
        "bins": config["run"]["bins"],
        **kept,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
