"""Long evaluations on the CPU in several calls of an op, between which Ctrl-C is noticed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import functional

__all__ = ["in_calls"]

# A call takes about so many multiply-adds at most, which is a part of a second.
_MULTIPLY_ADDS = 2**33
# Events of fewer numbers in all are evaluated in one call, without looking at the model.
_FEW = 2**16


def in_calls(
    model: nn.Module,
    multiply_adds: Callable[[], int],
    evaluate: Callable[[Tensor, Tensor | None], Tensor],
    rows: Tensor,
    others: Tensor | None,
) -> Tensor:
    """evaluate(rows, others), whose results have a row for each of rows and of others. Where a graph is recorded it is
    one call, since the backward pass is one in any case.

    Args:
        model: what evaluates.
        multiply_adds: about how many a row takes.
        evaluate: (rows (B, ...), others (B, ...) or None) -> (B, ...).
        rows: (N, ...).
        others: (N, ...).
    """
    if torch.compiler.is_compiling() or rows.device.type != "cpu" or rows.numel() < _FEW or functional.transformed():
        return evaluate(rows, others)
    tensors = rows, others, *model.parameters()
    if torch.is_grad_enabled() and any(own is not None and own.requires_grad for own in tensors):
        return evaluate(rows, others)
    size = max(1, _MULTIPLY_ADDS // max(1, multiply_adds()))
    if len(rows) <= size:
        return evaluate(rows, others)
    found = None
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        own = evaluate(rows[part], None if others is None else others[part])
        found = own.new_empty(len(rows), *own.shape[1:]) if found is None else found
        found[part] = own
    return found
