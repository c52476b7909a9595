"""Orders in which variables are drawn: order[i] is the flat index of the variable at position i."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ._integers import is_integer

__all__ = ["check", "inverse", "random", "raster", "reversed", "snake"]


def _shape(event_shape: int | Sequence[int]) -> tuple[int, ...]:
    shape = (int(event_shape),) if is_integer(event_shape) else tuple(int(size) for size in event_shape)
    if not shape or any(size < 1 for size in shape):
        raise ValueError(f"orderings: event_shape must be one or more positive sizes, got {tuple(shape)}")
    return shape


def _pixels(event_shape: int | Sequence[int]) -> Tensor:
    """Flat indices, (H, W, C) for an event of shape (C, H, W), (H, W, 1) for (H, W), else (1, D, 1)."""
    shape = _shape(event_shape)
    index = torch.arange(math.prod(shape))
    if len(shape) == 3:
        return index.reshape(shape).permute(1, 2, 0)
    if len(shape) == 2:
        return index.reshape(*shape, 1)
    return index.reshape(1, -1, 1)


def raster(event_shape: int | Sequence[int]) -> Tensor:
    """Row by row, left to right; for (C, H, W), the channels of each pixel are next to each other.

    Example:
        >>> raster((2, 1, 3)).tolist()
        [0, 3, 1, 4, 2, 5]
    """
    return _pixels(event_shape).flatten()


def reversed(event_shape: int | Sequence[int]) -> Tensor:
    """The raster order reversed.

    Example:
        >>> reversed((2, 2)).tolist()
        [3, 2, 1, 0]
    """
    return raster(event_shape).flip(0)


def snake(event_shape: int | Sequence[int]) -> Tensor:
    """Row by row, every second row from right to left, so that neighbours in the order are neighbours in the image.

    Example:
        >>> snake((2, 3)).tolist()
        [0, 1, 2, 5, 4, 3]
    """
    pixels = _pixels(event_shape).clone()
    pixels[1::2] = pixels[1::2].flip(1)
    return pixels.flatten()


def random(event_shape: int | Sequence[int], seed: int) -> Tensor:
    """A random permutation; it does not use torch's default generator.

    Example:
        >>> sorted(random(4, seed=1).tolist())
        [0, 1, 2, 3]
    """
    return torch.randperm(math.prod(_shape(event_shape)), generator=torch.Generator().manual_seed(operator.index(seed)))


def check(order: Tensor | Sequence[int], variables: int | None = None) -> Tensor:
    """Returns ``order`` as an int64 tensor if it is a permutation of 0 ... D-1.

    Args:
        order: D integers.
        variables: D, if it is known.

    Raises:
        ValueError: if order is not one-dimensional, not of integers, of another length, or not a permutation; the
            message names the first wrong entry.

    Example:
        >>> check([2, 0, 1])
        tensor([2, 0, 1])
    """
    tensor = order if isinstance(order, Tensor) else torch.as_tensor(order)
    if tensor.is_meta:
        raise ValueError("order: must have values, got a tensor on the meta device")
    if tensor.dim() != 1:
        raise ValueError(f"order: must have shape (D,), got {tuple(tensor.shape)}")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"order: must hold integers, got {tensor.dtype}")
    tensor = tensor.to(torch.int64)
    size = tensor.numel() if variables is None else variables
    if tensor.numel() != size:
        raise ValueError(f"order: must be a permutation of 0 ... {size - 1}, got {tensor.numel()} entries")
    outside = ((tensor < 0) | (tensor >= size)).nonzero()
    if outside.numel():
        position = int(outside[0])
        raise ValueError(
            f"order: must be a permutation of 0 ... {size - 1}, got {int(tensor[position])} at position {position}"
        )
    counts = torch.bincount(tensor, minlength=size)
    if bool((counts != 1).any()):
        twice = int(counts.argmax())
        raise ValueError(f"order: must be a permutation of 0 ... {size - 1}, got {twice} {int(counts[twice])} times")
    return tensor


def inverse(order: Tensor | Sequence[int]) -> Tensor:
    """The position of each variable: inverse(order)[order[i]] == i.

    Example:
        >>> inverse([2, 0, 1])
        tensor([1, 2, 0])
    """
    return check(order).argsort()
