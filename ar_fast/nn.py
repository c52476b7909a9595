"""Layers that stand in for those of torch.nn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import functional
from ._vocabulary import MLP_ACTIVATIONS
from .freezing import Kept
from .masks import Mask

__all__ = ["MaskedLinear"]


class MaskedLinear(nn.Linear):
    r"""A torch.nn.Linear with masked weights, and by choice the activation behind it.

    .. math:: y = f\big(x (W \odot M)^T + b\big)

    Its state_dict is that of torch.nn.Linear (weight, bias): weights trained elsewhere load as they are. The mask's
    plan moves with the module and is not saved. Masked weights have no effect and get a gradient of exactly zero.

    Args:
        in_features: I.
        out_features: O.
        mask: an :class:`ar_fast.Mask`, or a bool tensor (O, I).
        bias: add a learned (O).
        activation: f, by its name in :func:`ar_fast.functional.masked_linear`; None is the identity.
        device: of the parameters and the mask.
        dtype: float32, float64, bfloat16 or float16.

    Shape:
        input (..., I) -> (..., O).

    Raises:
        ValueError: if the mask's shape is not (O, I), or there is no such activation.

    Source: Germain, Gregor, Murray, Larochelle, "MADE", ICML 2015.

    Example:
        >>> layer = MaskedLinear(3, 2, Mask.from_degrees([1, 2, 3], [1, 2]))
        >>> layer
        MaskedLinear(in_features=3, out_features=2, bias=True, plan='nested', density=0.5)
        >>> layer(torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        mask: Mask | Tensor,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        if activation is not None and activation not in MLP_ACTIVATIONS:
            names = ", ".join(MLP_ACTIVATIONS)
            raise ValueError(f"MaskedLinear: activation must be None or one of {names}, got {activation!r}")
        self.activation = activation
        self.set_mask(mask if isinstance(mask, Mask) else Mask.from_dense(mask))

    @classmethod
    def from_linear(cls, linear: nn.Linear, mask: Mask | Tensor, *, activation: str | None = None) -> MaskedLinear:
        """The same layer with a mask, and perhaps an activation; it shares linear's parameters."""
        mask = mask if isinstance(mask, Mask) else Mask.from_dense(mask)
        sizes = linear.in_features, linear.out_features
        layer = cls(*sizes, mask, bias=linear.bias is not None, device="meta", activation=activation)
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.set_mask(mask)
        return layer

    def set_mask(self, mask: Mask) -> None:
        """Takes another mask, of the same shape, in place of the one that the layer has."""
        if (mask.out_features, mask.in_features) != (self.out_features, self.in_features):
            shape = self.out_features, self.in_features
            raise ValueError(
                f"MaskedLinear: mask must have shape (out_features, in_features) = {shape}, "
                f"got ({mask.out_features}, {mask.in_features})"
            )
        for name, tensor in zip(("extents", "rows", "columns", "tiles", "dense"), mask.plan, strict=True):
            moved = None if tensor is None else tensor.to(self.weight.device)
            self.register_buffer(f"mask_{name}", moved, persistent=False)

    @property
    def mask(self) -> Mask:
        plan = self.mask_extents, self.mask_rows, self.mask_columns, self.mask_tiles, self.mask_dense
        return Mask(self.out_features, self.in_features, *plan)

    #: What :func:`ar_fast.frozen` keeps.
    _kept: Kept | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self._kept is not None and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self._forward_frozen(input)
        return self._forward(input)

    def _forward_frozen(self, input: Tensor) -> Tensor:
        """Without gradients: of weights that are sorted once, so that the mask is a staircase in place."""
        rows, columns, extents = self.mask_rows, self.mask_columns, self.mask_extents
        if extents is None or (rows is None and columns is None):
            return self._forward(input)

        def gather() -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
            weight, bias, ends = self.weight.detach(), self.bias, extents
            if columns is not None:
                weight = weight.index_select(1, columns)
            if rows is None:
                return weight, bias, ends, None
            bias = None if bias is None else bias.detach()[rows]
            return weight.index_select(0, rows), bias, ends[rows], rows.argsort()

        made_of = self.weight, self.bias, extents, rows, columns
        weight, bias, ends, places = self._kept.get(made_of, gather)
        if columns is not None:
            input = input.index_select(-1, columns)
        plan = ends, None, None, None, None
        output = functional.call("masked_linear", input, weight, bias, *plan, "auto", self.activation)
        return output if places is None else output.index_select(-1, places)

    def _forward(self, input: Tensor) -> Tensor:
        # As functional.masked_linear, whose check of the mask against the weight was made in __init__. The buffers are
        # taken from their dict: five calls of Module.__getattr__ cost as much as a small layer.
        plan = self._buffers
        return functional.call(
            "masked_linear",
            input,
            self.weight,
            self.bias,
            plan["mask_extents"],
            plan["mask_rows"],
            plan["mask_columns"],
            plan["mask_tiles"],
            plan["mask_dense"],
            "auto",
            self.activation,
        )

    def extra_repr(self) -> str:
        plan = repr(self.mask).partition("plan=")[2].rstrip(")")
        activation = "" if self.activation is None else f", activation={self.activation!r}"
        return f"{super().extra_repr()}{activation}, plan={plan}"
