"""The head of binary variables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from .base import OneKind

__all__ = ["Bernoulli"]


class Bernoulli(OneKind):
    """p(x = 1) = sigmoid(logit), x in {0, 1}; one parameter.

    Temperature divides the logit: below 1 it sharpens, above 1 it flattens.

    Example:
        >>> Bernoulli().log_prob(torch.zeros(1, 1), torch.ones(1))
        tensor([-0.6931])
    """

    kind = "bernoulli"

    def counts(self, variables: int) -> int:
        return 1

    def sizes(self, variables: int) -> list[int | None]:
        return [2] * variables

    def support(self, event_shape: torch.Size) -> constraints.Constraint:
        return constraints.boolean

    def violation(self, x: Tensor, upper: Tensor | None = None) -> Tensor:
        return (x != 0) & (x != 1)

    def supports(self, x: Tensor, upper: Tensor | None = None) -> bool:
        # Only 0 and 1 equal their squares, in floating point too, except infinity, which this test turns into NaN.
        if x.is_floating_point():
            return not bool(torch.addcmul(x, x, x, value=-1).any())
        return torch.equal(x * x, x)

    def parameters_from_mean(self, mean: Tensor) -> Tensor:
        return torch.logit(mean, eps=1e-3).unsqueeze(-1)

    def _mean(self, parameters: Tensor) -> Tensor:
        return parameters.squeeze(-1).sigmoid()

    def _mode(self, parameters: Tensor) -> Tensor:
        return (parameters.squeeze(-1) > 0).to(parameters.dtype)

    def _sample(self, parameters: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        return (parameters.squeeze(-1) / temperature).sigmoid().bernoulli(generator=generator)

    def config(self) -> dict[str, Any]:
        return {"name": "Bernoulli"}
