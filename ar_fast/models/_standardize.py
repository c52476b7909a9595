"""Shift and scale between real variables in the data's units and in the units that a model computes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self


class Standardization(nn.Module):
    """z = (x - shift) / scale for each variable, and back; 0 and 1 for the variables that are not real.

    Both are always float64, whatever dtype the model is moved to, since shifts may be large. With 0 and 1 the numbers
    stay the same bit for bit, so no caller needs to treat that case. A model and its copies by in_order share it.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, variables: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(variables, dtype=torch.float64, device=device))
        self.register_buffer("scale", torch.ones(variables, dtype=torch.float64, device=device))

    @torch.no_grad()
    def set(self, shift: Tensor, scale: Tensor) -> None:
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    def forward(self, x: Tensor, dtype: torch.dtype, index: slice | Tensor | int = slice(None)) -> Tensor:
        """x (..., D), or of the variables ``index``, in standardised units."""
        return ((x - self.shift[index]) / self.scale[index]).to(dtype)

    def inverse(self, z: Tensor, index: slice | Tensor = slice(None)) -> Tensor:
        return (z * self.scale[index] + self.shift[index]).to(z.dtype)

    def log_scale(self, index: slice | Tensor = slice(None)) -> Tensor:
        """(D) float64, or for the variables ``index``: the log-density in standardised units minus that of x."""
        return self.scale[index].log()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in kept.items():
            moved = self._buffers[name]
            if before.is_meta and not moved.is_meta:
                # After to_empty it has no value until one is loaded, and no reset_parameters would set it.
                self._buffers[name] = torch.full_like(moved, float(name == "scale"), dtype=torch.float64)
            else:
                self._buffers[name] = moved.double() if before.is_meta else before.to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # Models that were saved before standardisation existed have no keys for it, which means that it changes
        # nothing. If this one was set, the keys count as missing like any others, and it stays as it is.
        if not any(prefix + name in state_dict for name in self._buffers) and self._changes_nothing():
            state_dict = state_dict | self.none(prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _changes_nothing(self) -> bool:
        return self.shift.is_meta or (not bool(self.shift.any()) and bool((self.scale == 1).all()))

    def none(self, prefix: str) -> dict[str, Tensor]:
        """The state of a standardisation that changes nothing."""
        device = "cpu" if self.shift.is_meta else self.shift.device
        return {
            prefix + "shift": torch.zeros_like(self.shift, device=device),
            prefix + "scale": torch.ones_like(self.scale, device=device),
        }


def in_data_units(standardization: Standardization | None, log_prob: Tensor, per_variable: bool) -> Tensor:
    """Converts a log-density of standardised units, (B) or (B, D), to the units of x; None changes nothing."""
    if standardization is None:
        return log_prob
    log_scale = standardization.log_scale()
    return (log_prob - (log_scale if per_variable else log_scale.sum())).to(log_prob.dtype)
