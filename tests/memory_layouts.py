"""Layouts: where a tensor's elements stand in memory. Between them stands what must not be read."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def _poison(tensor: Tensor) -> Any:
    if tensor.is_floating_point():
        return math.nan
    return True if tensor.dtype == torch.bool else 77


def _padded(tensor: Tensor) -> Tensor:
    wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 3), _poison(tensor))
    wide[..., 1:-2] = tensor
    return wide[..., 1:-2]


def _every_other(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, torch.full_like(tensor, _poison(tensor))], -1)[..., 0]


def _behind(tensor: Tensor) -> Tensor:
    wide = tensor.new_full((tensor.numel() + 3,), _poison(tensor))
    wide[3:] = tensor.reshape(-1)
    return wide[3:].view(tensor.shape)


LAYOUTS = {
    "contiguous": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.mT.contiguous().mT if tensor.dim() > 1 else _every_other(tensor),
    "padded": _padded,
    "every other": _every_other,
    "behind": _behind,
    "rows apart": lambda tensor: tensor.repeat_interleave(2, 0)[::2],
}
