"""The head of categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from .._integers import integers, is_integer
from .base import IntegerInterval, OneKind, is_whole

__all__ = ["Categorical"]


class Categorical(OneKind):
    """p(x = k) = softmax(logits)_k, x in 0 ... K-1; K logits per variable. Samples are int64.

    A model gives each category its own weight row and never feeds it as a number, so relabelling the categories changes
    nothing. Temperature divides the logits.

    Args:
        categories: K, or one K for each variable.

    Example:
        >>> Categorical(3).log_prob(torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor([-1.0986, -1.0986])
        >>> Categorical([2, 3]).log_prob(torch.zeros(5), torch.tensor([1, 2]))
        tensor([-0.6931, -1.0986])
    """

    kind = "categorical"

    def __init__(self, categories: int | Sequence[int]) -> None:
        given = integers(categories)
        if not given or min(given) < 1:
            raise ValueError(f"Categorical: categories must be a positive integer or some of them, got {categories!r}")
        self.categories = given[0] if is_integer(categories) else given

    def counts(self, variables: int) -> int | list[int]:
        if isinstance(self.categories, list) and len(self.categories) != variables:
            raise ValueError(
                f"Categorical: categories must have one entry per variable, {variables}, got {len(self.categories)}"
            )
        return self.categories

    def sizes(self, variables: int) -> list[int | None]:
        return [self.categories] * variables if isinstance(self.categories, int) else list(self.categories)

    def inputs(self, variables: int) -> list[int]:
        return self.sizes(variables)

    def support(self, event_shape: torch.Size) -> constraints.Constraint:
        if isinstance(self.categories, int):
            return IntegerInterval(0, self.categories - 1)
        return IntegerInterval(0, torch.tensor(self.categories).reshape(event_shape) - 1)

    def violation(self, x: Tensor, upper: Tensor | None = None) -> Tensor:
        bound: Any = self.categories if upper is None else upper
        return ~is_whole(x, bound)

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        # A fraction and NaN become a number that is no category either.
        return torch.where(is_whole(x, 2**53), x, -1).long() if x.is_floating_point() else x.long()

    def decode(self, values: Tensor) -> Tensor:
        return values.long()

    def parameters_from_mean(self, mean: Tensor) -> Tensor:
        raise ValueError("Categorical: categories have no mean to start from")

    def of(self, variable: int) -> Categorical:
        return self if isinstance(self.categories, int) else Categorical(self.categories[variable])

    @property
    def _own_counts(self) -> list[int] | None:
        return None if isinstance(self.categories, int) else self.categories

    def _mean(self, parameters: Tensor) -> Tensor:
        raise ValueError("Categorical: categories have no mean, their numbers mean nothing; take softmax or mode")

    def _mode(self, parameters: Tensor) -> Tensor:
        return parameters.argmax(-1)

    def _sample(self, parameters: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        return draw_category(parameters, temperature, generator)

    def config(self) -> dict[str, Any]:
        return {"name": "Categorical", "categories": self.categories}


def draw_category(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """(..., K) -> (...) int64."""
    weights = (logits / temperature).softmax(-1)
    drawn = torch.multinomial(weights.reshape(-1, logits.shape[-1]), 1, generator=generator)
    return drawn.reshape(logits.shape[:-1])
