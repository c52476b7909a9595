"""Models as plain torch modules, which run and are exported where ar_fast is not installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import _fallback, _library
from .heads import Categorical
from .reference import heads, ops

__all__ = ["to_torch"]


class _LogProb(nn.Module):
    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.model.log_prob(x, context)


def to_torch(model: Any) -> nn.Module:
    """log_prob of a model as a module of torch's own functions: it needs torch alone, and has gradients.

    It is what :func:`torch.export.export` makes of the plain-torch references, with a dynamic batch, so its numbers are
    the model's up to rounding. ``torch.export.save``, ``torch.onnx.export`` and torch.compile take it as any other
    module. NADE's hidden states stand in memory at once, (B, D, H); a loop over the variables would be a graph of D
    parts.

    Args:
        model: any model of ar_fast, in evaluation mode or without dropout.

    Returns:
        A module of x (B, *event_shape) and, for a model with context_features, the context (B, C), which returns
        (B). x is int64 for a Categorical head and of the model's dtype otherwise. The parameters are copies.

    Raises:
        ValueError: for anything but a model of ar_fast, or one that has no references.

    Example:
        >>> from ar_fast.models import MADE
        >>> model = MADE(4, [8]).eval()
        >>> module, x = to_torch(model), torch.ones(3, 4)
        >>> torch.allclose(module(x), model.log_prob(x))
        True
    """
    if not hasattr(model, "log_prob") or not hasattr(model, "head"):
        raise ValueError(f"to_torch: model must be a model of ar_fast with log_prob, got {type(model).__name__}")
    # Two rows, since a batch of one would be taken for a constant. Zero is a value of every head.
    dtype = torch.int64 if isinstance(model.head, Categorical) else model.dtype
    example: tuple[Tensor, ...] = (torch.zeros(2, *model.event_shape, dtype=dtype, device=model.device),)
    if model.context_features:
        example = *example, torch.zeros(2, model.context_features, dtype=model.dtype, device=model.device)
    calls = _HeadCalls()
    own = {**_fallback.REFERENCES, "nade": _nade, "nade_log_prob": calls.nade_log_prob, "head_log_prob": calls}
    with _library.replaced(own), torch.no_grad():
        model.log_prob(*example)
    calls.replays = True
    batch: Any = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in example)
    with _library.replaced(own):
        program = torch.export.export(_LogProb(model), example, dynamic_shapes=shapes)
    left = {str(node.target) for node in program.graph.nodes if str(node.target).startswith("ar_fast")}
    if left:
        raise ValueError(f"to_torch: {type(model).__name__} runs on ops that torch has not: {', '.join(sorted(left))}")
    return program.module()


def _nade(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    order: Tensor | None = None,
    in_offsets: Tensor | None = None,
    out_offsets: Tensor | None = None,
    activation_scale: Tensor | None = None,
    activation: str = "sigmoid",
    algorithm: str = "auto",
) -> Tensor:
    """:func:`ar_fast.reference.nade` without a loop: states by sums over positions."""
    dtype, variables = in_weight.dtype, x.shape[1]
    each = len(in_weight) // variables
    if in_offsets is not None or each > 1:
        first = torch.arange(variables, device=x.device) * each if in_offsets is None else in_offsets[:-1]
        if in_offsets is None or not x.is_floating_point():
            added = in_weight[first + x.long()]
        else:
            gathers = in_offsets.diff() > 1
            factor = torch.where(gathers, 1, x.to(dtype))
            added = in_weight[first + torch.where(gathers, x, 0).long()] * factor.unsqueeze(-1)
    else:
        added = x.to(dtype).unsqueeze(-1) * in_weight
    if order is not None:
        added = added[:, order]
    before = torch.cat([torch.zeros_like(added[:, :1]), added[:, :-1].cumsum(1)], 1)
    state = in_bias.reshape(-1, 1, in_bias.shape[-1]) + before
    if order is not None:
        state = state[:, order.argsort()]
    state = state if activation_scale is None else state * activation_scale[:, None]
    hidden = ops.ACTIVATIONS[activation](state)
    if out_offsets is not None:
        rows = torch.arange(len(out_weight), device=x.device)
        # As torch.searchsorted(out_offsets, rows, right=True) - 1, which ONNX has not.
        owner = (rows[:, None] >= out_offsets[1:]).sum(1)
        return (hidden[:, owner] * out_weight).sum(-1) + out_bias
    weight = out_weight.reshape(variables, -1, out_weight.shape[1])
    return torch.einsum("bdh,dkh->bdk", hidden, weight).flatten(1) + out_bias


class _HeadCalls:
    """``reference.head_log_prob`` for a trace, where a tensor has no values: which parameters and which head belong to
    a variable is read when the model is called once before, and used in the same calls of the trace."""

    def __init__(self) -> None:
        self.replays = False
        self._calls: list[tuple[list[int], list[tuple[str, int]]]] = []
        self._traced = 0

    def __call__(
        self,
        parameters: Tensor,
        x: Tensor,
        offsets: Tensor | None,
        head: str,
        levels: int,
        head_kinds: Tensor | None = None,
    ) -> Tensor:
        if offsets is None and head_kinds is None:
            return heads.head_log_prob(parameters, x, None, head, levels)
        if not self.replays:
            bounds = heads.bounds_of(offsets, x.shape[1], parameters.shape[1])
            own = [heads.head_of(head, levels, head_kinds, index) for index in range(x.shape[1])]
            self._calls.append((bounds, own))
        bounds, own = self._calls[self._traced if self.replays else -1]
        if self.replays:
            self._traced = (self._traced + 1) % len(self._calls)
        parts = parameters.tensor_split(bounds[1:-1], dim=1)
        x = x.to(parameters.dtype)
        terms = [heads.log_prob_of(part, x[:, i], *own[i]) for i, part in enumerate(parts)]
        return torch.stack(terms, 1)

    def nade_log_prob(self, *arguments: Any) -> Tensor:
        """Behind the arguments of nade come those of the head."""
        *of_nade, head, levels, head_kinds, per_variable, _ = arguments
        log_prob = self(_nade(*of_nade), of_nade[0], of_nade[7], head, levels, head_kinds)
        return log_prob if per_variable else log_prob.double().sum(1).to(log_prob.dtype)
