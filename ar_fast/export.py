"""Models as plain torch modules, which run and are exported where ar_fast is not installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import _fallback, _library
from .heads import Bernoulli, Categorical
from .reference import ops

__all__ = ["to_torch"]


class _LogProb(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.model.log_prob(x, context)


def to_torch(model: nn.Module) -> nn.Module:
    """log_prob of a model as a module of torch's own functions: it needs torch alone, and has gradients.

    It is what :func:`torch.export.export` makes of the plain-torch references, with a dynamic batch, so its numbers are
    the model's up to rounding. ``torch.export.save``, ``torch.onnx.export`` and torch.compile take it as any other
    module. NADE's hidden states stand in memory at once, (B, D, H); a loop over the variables would be a graph of D
    parts.

    Args:
        model: any model of ar_fast whose variables have one head, in evaluation mode or without dropout.

    Returns:
        A module of x (B, *event_shape) and, for a model with context_features, the context (B, C), which returns
        (B). x is int64 for categories and of the model's dtype otherwise. The parameters are copies.

    Raises:
        ValueError: for a model whose variables have different heads or numbers of categories, or that has no
            references.

    Example:
        >>> from ar_fast.models import MADE
        >>> model = MADE(4, [8]).eval()
        >>> module, x = to_torch(model), torch.ones(3, 4)
        >>> torch.allclose(module(x), model.log_prob(x))
        True
    """
    if not hasattr(model, "log_prob") or not hasattr(model, "head"):
        raise ValueError(f"to_torch: model must be a model of ar_fast with log_prob, got {type(model).__name__}")
    if not isinstance(model.counts, int) or model.head_kinds is not None:
        raise ValueError(
            f"to_torch: model must have one head and as many categories for every variable, got {model.head!r}"
        )
    dtype = torch.int64 if isinstance(model.head, Categorical) else model.dtype
    # Two rows, since a batch of one would be taken for a constant.
    example: tuple[Tensor, ...] = (torch.zeros(2, *model.event_shape, dtype=dtype, device=model.device),)
    if not isinstance(model.head, Bernoulli | Categorical):
        example = (torch.rand_like(example[0]),)
    if model.context_features:
        example = *example, torch.zeros(2, model.context_features, dtype=model.dtype, device=model.device)
    batch: Any = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in example)
    with _library.replaced({**_fallback.REFERENCES, "nade": _nade, "nade_log_prob": _nade_log_prob}):
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
    """:func:`ar_fast.reference.nade` without a loop, for variables of one kind: states by sums over positions."""
    dtype, variables = in_weight.dtype, x.shape[1]
    each = len(in_weight) // variables
    if in_offsets is not None or each > 1:
        first = torch.arange(variables, device=x.device) * each if in_offsets is None else in_offsets[:-1]
        added = in_weight[first + x.long()]
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
        owner = torch.searchsorted(out_offsets, rows, right=True) - 1
        return (hidden[:, owner] * out_weight).sum(-1) + out_bias
    weight = out_weight.reshape(variables, -1, out_weight.shape[1])
    return torch.einsum("bdh,dkh->bdk", hidden, weight).flatten(1) + out_bias


def _nade_log_prob(*arguments: Any) -> Tensor:
    """Of the parameters above. Behind the arguments of nade come those of the head."""
    *of_nade, head, levels, _, per_variable, _ = arguments
    log_prob = ops.head_log_prob(_nade(*of_nade), of_nade[0], None, head, levels)
    return log_prob if per_variable else log_prob.double().sum(1).to(log_prob.dtype)
