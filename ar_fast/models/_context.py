"""How a context enters a model during sampling."""

from __future__ import annotations

from torch import Tensor


def add_context(bias: Tensor, context: Tensor, weight: Tensor) -> Tensor:
    """bias (H) + context (B, C) weight^T -> (B, H) in the dtype of bias.

    It adds one feature at a time, instead of a matrix product: a row's rounding must not depend on the other rows, so
    that samples do not depend on how many are drawn at once.
    """
    context, weight = context.to(bias.dtype), weight.to(bias.dtype)
    total = bias.expand(context.shape[0], -1)
    for feature in range(context.shape[1]):
        total = total + context[:, feature, None] * weight[:, feature]
    return total
