"""The shift and the scale between real variables in the data's units and in those that a model computes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self


class Standardization(nn.Module):
    """z = (x - shift) / scale for each variable, and back; 0 and 1 for the variables that are not real.

    Both are float64 whatever the model is moved to: shifts may be large. Models in other orders share the module.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, variables: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(variables, dtype=torch.float64, device=device))
        self.register_buffer("scale", torch.ones(variables, dtype=torch.float64, device=device))
        #: Whether nothing changes, so that nothing need be computed.
        self.identity = True
        self.register_load_state_dict_post_hook(_look_again)

    @torch.no_grad()
    def set(self, shift: Tensor, scale: Tensor) -> None:
        self.shift.copy_(shift)
        self.scale.copy_(scale)
        self.look()

    def look(self) -> None:
        """After the buffers were written."""
        # What a meta tensor will hold is not known.
        self.identity = not self.shift.is_meta and not bool(((self.shift != 0) | (self.scale != 1)).any())

    def forward(self, x: Tensor, dtype: torch.dtype, index: slice | Tensor | int = slice(None)) -> Tensor:
        """x (..., D), or of the variables ``index``, in standardised units."""
        if self.identity:
            return x
        return ((x - self.shift[index]) / self.scale[index]).to(dtype)

    def inverse(self, z: Tensor, index: slice | Tensor = slice(None)) -> Tensor:
        if self.identity:
            return z
        return (z * self.scale[index] + self.shift[index]).to(z.dtype)

    def log_scale(self, index: slice | Tensor = slice(None)) -> Tensor:
        """(D) float64, or of the variables ``index``: what a log-density in standardised units is above one of x."""
        return self.scale[index].log()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in kept.items():
            moved = self._buffers[name]
            self._buffers[name] = moved.to(torch.float64) if before.is_meta else before.to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # Models that were saved before there was a standardisation have none.
        if not any(prefix + name in state_dict for name in self._buffers):
            state_dict = state_dict | self.none(prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def none(self, prefix: str) -> dict[str, Tensor]:
        """The state of one that changes nothing."""
        return {prefix + "shift": torch.zeros_like(self.shift), prefix + "scale": torch.ones_like(self.scale)}


def _look_again(module: Standardization, _: object) -> None:
    module.look()
