"""Layers that replace those of torch.nn, and a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from ._structure import Structured, building, follow_loaded
from ._vocabulary import MLP_ACTIVATIONS
from .freezing import Kept
from .masks import Mask

__all__ = ["MaskedLinear", "NegativeLogLikelihood"]

# The attributes of a layer that hold its mask's plan.
_PLAN = "mask_extents", "mask_rows", "mask_columns", "mask_tiles", "mask_dense"


class MaskedLinear(Structured, nn.Linear):
    r"""A torch.nn.Linear with masked weights and an optional activation.

    .. math:: y = f\big(x (W \odot M)^T + b\big)

    Masked weights have no effect and get a gradient of exactly zero. The mask's plan is not a buffer and is not saved.

    Its state_dict is that of torch.nn.Linear (weight, bias), and each loads into the other strictly. The metadata of
    the state_dict hold a fingerprint of the mask, so that weights that were trained with another mask do not load.
    ``torch.save`` keeps metadata, safetensors does not; weights without a fingerprint load. The keys ``mask`` and
    ``degrees``, which the masked layers of zuko, nflows and normflows save, must agree with the mask, and are dropped.

    Args:
        in_features: I.
        out_features: O.
        mask: an :class:`ar_fast.Mask`, or a bool tensor (O, I).
        bias: add a learned bias (O).
        activation: f, by its name in :func:`ar_fast.functional.masked_linear`; None is the identity.
        device: device of the parameters and the mask.
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
        self.register_load_state_dict_post_hook(follow_loaded)
        self.set_mask(mask if isinstance(mask, Mask) else Mask.from_dense(mask))

    @classmethod
    def from_linear(cls, linear: nn.Linear, mask: Mask | Tensor, *, activation: str | None = None) -> MaskedLinear:
        """The same layer with a mask and optionally an activation; it shares linear's parameters."""
        mask = mask if isinstance(mask, Mask) else Mask.from_dense(mask)
        sizes = linear.in_features, linear.out_features
        layer = cls(*sizes, mask, bias=linear.bias is not None, device="meta", activation=activation)
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.set_mask(mask)
        return layer

    def set_mask(self, mask: Mask) -> None:
        """Replaces the mask by another one of the same shape."""
        if (mask.out_features, mask.in_features) != (self.out_features, self.in_features):
            shape = self.out_features, self.in_features
            raise ValueError(
                f"MaskedLinear: mask must have shape (out_features, in_features) = {shape}, "
                f"got ({mask.out_features}, {mask.in_features})"
            )
        self._fingerprint: str | None = None
        self._steps = mask.steps
        self._set_derived(dict(zip(_PLAN, mask.plan, strict=True)), self.weight.device)

    @property
    def mask(self) -> Mask:
        self._follow(self.weight.device)
        plan = [getattr(self, name) for name in _PLAN]
        return Mask._of_plan(self.out_features, self.in_features, plan, self._steps)

    def _home(self) -> torch.device:
        return self.weight.device

    @property
    def _mask_with_values(self) -> Mask:
        """The mask, which has values also where the parameters are on the meta device."""
        return Mask._of_plan(self.out_features, self.in_features, [self._derived[name] for name in _PLAN], ())

    @property
    def _saved_mask(self) -> dict[str, str]:
        """What a checkpoint says about the mask."""
        mask = self._mask_with_values
        if self._fingerprint is None:
            self._fingerprint = mask.fingerprint()
        return {"mask": repr(mask), "fingerprint": self._fingerprint}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # In the metadata and not under a key, which torch.nn.Linear would refuse.
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["masked_linear"] = self._saved_mask

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        foreign = {name: state_dict[prefix + name] for name in ("mask", "degrees") if prefix + name in state_dict}
        given = local_metadata.get("masked_linear")
        if given is not None and given["fingerprint"] != self._saved_mask["fingerprint"]:
            error_msgs.append(self._another_mask(prefix, given))
        elif "mask" in foreign:
            mask = foreign["mask"]
            if mask.dim() != 2:
                error_msgs.append(f"{prefix}mask must have shape (O, I), got {tuple(mask.shape)}")
            else:
                mask = Mask.from_dense(mask != 0)
                given = {"mask": repr(mask), "fingerprint": mask.fingerprint()}
                if given["fingerprint"] != self._saved_mask["fingerprint"]:
                    error_msgs.append(self._another_mask(prefix, given))
        if "degrees" in foreign and not self._has_degrees(foreign["degrees"]):
            own = self._saved_mask
            error_msgs.append(
                f"{prefix}degrees must be those of the outputs, (O,) integers, so that outputs of a higher degree see "
                f"all that others see, got {tuple(foreign['degrees'].shape)} of {foreign['degrees'].dtype} that do not "
                f"belong to {own['mask']} with fingerprint {own['fingerprint']}"
            )
        rest = {key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in foreign}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def _another_mask(self, prefix: str, given: dict[str, str]) -> str:
        own = self._saved_mask
        return (
            f"{prefix.removesuffix('.') or 'MaskedLinear'}: the mask must be the one that the weights were trained "
            f"with, {given['mask']} with fingerprint {given['fingerprint']}, got a layer with {own['mask']} with "
            f"fingerprint {own['fingerprint']}"
        )

    @torch.no_grad()
    def _has_degrees(self, degrees: Tensor) -> bool:
        """Whether the mask can belong to outputs of these degrees."""
        extents = self._derived["mask_extents"]
        if degrees.shape != (self.out_features,) or degrees.is_floating_point() or extents is None:
            return False
        with building():
            pairs = torch.stack([degrees.cpu().long(), extents.cpu().long()], 1).unique(dim=0)
        # Sorted by degree, then by extent: each degree must have one extent, and extents must never decrease.
        steps = pairs.diff(dim=0)
        return bool((steps[:, 0] > 0).all()) and bool((steps[:, 1] >= 0).all())

    #: What :func:`ar_fast.frozen` keeps for this layer.
    _kept: Kept | None = None

    def forward(self, input: Tensor) -> Tensor:
        # Read from the dict of parameters: two calls of Module.__getattr__ take a twentieth of a small layer's time.
        weight: Tensor | None = self._parameters.get("weight")
        if weight is None:
            weight = self.weight
        if weight.device != self._derived_on:
            self._follow(weight.device)
        if self._kept is not None and not (
            torch.is_grad_enabled() or torch.compiler.is_compiling() or functional.transformed()
        ):
            return self._forward_frozen(input)
        return self._forward(input, weight)

    def _forward_frozen(self, input: Tensor) -> Tensor:
        """Without gradients: uses a kept copy of the weights, sorted so that the mask is a staircase."""
        rows, columns, extents = self.mask_rows, self.mask_columns, self.mask_extents
        if extents is None or (rows is None and columns is None):
            return self._forward(input, self.weight)

        def gather() -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
            weight, ends = self.weight.detach(), extents
            bias: Tensor | None = self.bias
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
        output = functional.call("masked_linear", input, weight, bias, *plan, "auto", self.activation, [])
        return output if places is None else output.index_select(-1, places)

    def _forward(self, input: Tensor, weight: Tensor) -> Tensor:
        bias = self._parameters.get("bias")
        if bias is None:
            bias = self.bias
        # The same as functional.masked_linear, without its check of the mask, which __init__ made.
        return functional.call(
            "masked_linear",
            input,
            weight,
            bias,
            self.mask_extents,
            self.mask_rows,
            self.mask_columns,
            self.mask_tiles,
            self.mask_dense,
            "auto",
            self.activation,
            self._steps,
        )

    def extra_repr(self) -> str:
        plan = repr(self.mask).partition("plan=")[2].rstrip(")")
        activation = "" if self.activation is None else f", activation={self.activation!r}"
        return f"{super().extra_repr()}{activation}, plan={plan}"


class NegativeLogLikelihood(nn.Module):
    """A model's loss as the forward pass of a module, for what wraps modules: DistributedDataParallel, torch.compile.

    It is -log p in nats, or the model's own ``loss`` if it has one (as DeepNADE does).

    Args:
        model: anything with ``log_prob`` or ``loss``: a model or flow of this package, or of another one.
        reduction: "mean" or "sum" of the events, or "none".

    Attributes:
        model: the model.

    Raises:
        ValueError: if reduction is none of these.

    Example:
        >>> from ar_fast.models import NADE
        >>> loss = NegativeLogLikelihood(NADE(6, hidden_features=4))
        >>> loss(torch.zeros(3, 6)).shape
        torch.Size([])
    """

    model: Any

    def __init__(self, model: nn.Module, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"NegativeLogLikelihood: reduction must be mean, sum or none, got {reduction!r}")
        self.model, self.reduction = model, reduction

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """The loss; arguments are those of the model's ``log_prob`` or ``loss``.

        Where they return more (a CharRNN's state), so does this: (loss, ...).
        """
        own = hasattr(self.model, "loss")
        found = (self.model.loss if own else self.model.log_prob)(x, *args, **options)
        nats, *rest = found if isinstance(found, tuple) else (found,)
        nats = nats if own else -nats
        if self.reduction != "none":
            nats = nats.mean() if self.reduction == "mean" else nats.sum()
        return (nats, *rest) if rest else nats

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
