"""Published weights by name: a path here, or a repository of the Hugging Face Hub."""

import importlib
import re
from pathlib import Path
from typing import Any

# What describes a network and its schedule; then its weights, the first of the two kinds that the repository has.
SETTINGS = (
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
)
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def fetch(name: str) -> Path:
    """The path of that name if there is one, or of PREFIX.json or PREFIX.index; else the repository OWNER/NAME, copied.

    The copy is the Hub's own cache; a second call reads it.

    Raises:
        ImportError: for a repository, if huggingface_hub isn't installed, saying how it comes.
        FileNotFoundError: if it is neither.
    """
    path = Path(name).expanduser()
    if path.exists() or any(Path(f"{path}{ending}").is_file() for ending in (".json", ".index")):
        return path
    neither = f"there is no file or folder {name!r} here"
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise FileNotFoundError(
            f"{neither}, and it isn't OWNER/NAME, as a repository of the Hugging Face Hub is called"
        )
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        raise ImportError(
            f"{neither}; to get it from the Hugging Face Hub: pip install 'ddpm_jax[hub]' (huggingface_hub is missing)"
        ) from None
    try:
        for weights in WEIGHTS:
            wanted = [*SETTINGS, weights, f"unet/{weights}"]
            folder = Path(hub.snapshot_download(name, allow_patterns=wanted))
            if any((folder / place).is_file() for place in wanted[-2:]):
                return folder
    except (OSError, ValueError) as error:
        said = str(error).strip().split("\n")[0]
        raise FileNotFoundError(f"{neither}, and the Hugging Face Hub didn't give it: {said}") from error
    raise FileNotFoundError(f"{neither}, and {name} on the Hugging Face Hub has no {' or '.join(WEIGHTS)}")
