"""The head of tables, whose variables have different kinds of heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from .._vocabulary import HEADS
from .base import Head, OneKind, is_whole
from .categorical import Categorical

__all__ = ["PerVariable"]

# float32 represents every whole number up to this one exactly.
_MOST_CATEGORIES = 2**24


class PerVariable(Head):
    r"""Each variable has its own head: binary, categorical, real and level columns of a table in one model.

    x is floating, with whole numbers for binary, categorical and level variables. So are samples, in the compute dtype.
    A model feeds each variable as its head requires: each category has its own weight row and is never fed as a number.
    The parameters of a variable are those of its head, side by side. Temperature acts as each variable's head says.

    Args:
        heads: one for each variable, by flat index: Bernoulli(), Categorical(K) with an int K of at least 2,
            GaussianMixture(K) or LogisticMixture(K, levels).

    Raises:
        ValueError: for an entry that breaks a rule above, or a K above 2^24, beyond which float32 skips whole numbers.

    Example:
        >>> head = PerVariable([Bernoulli(), Categorical(3), GaussianMixture(1)])
        >>> head.log_prob(torch.zeros(7), torch.tensor([1.0, 2.0, 0.0]))
        tensor([-0.6931, -1.0986, -0.9189])
    """

    kind = "per_variable"

    def __init__(self, heads: Sequence[Head]) -> None:
        self.heads = list(heads)
        if not self.heads:
            raise ValueError("PerVariable: heads must have one entry for each variable, got none")
        for index, head in enumerate(self.heads):
            if not isinstance(head, OneKind):
                raise ValueError(
                    "PerVariable: heads must be Bernoulli, Categorical, GaussianMixture or LogisticMixture, "
                    f"got {head!r} at index {index}"
                )
            if isinstance(head, Categorical) and not (
                isinstance(head.categories, int) and 2 <= head.categories <= _MOST_CATEGORIES
            ):
                raise ValueError(
                    f"PerVariable: Categorical must have one K of 2 to 2^24, got {head!r} at index {index}"
                )

    def _check(self, variables: int) -> None:
        if len(self.heads) != variables:
            raise ValueError(
                f"PerVariable: heads must have one entry for each variable, {variables}, got {len(self.heads)}"
            )

    def counts(self, variables: int) -> list[int]:
        self._check(variables)
        own: list[Any] = [head.counts(1) for head in self.heads]
        return own

    def sizes(self, variables: int) -> list[int | None]:
        self._check(variables)
        return [head.sizes(1)[0] for head in self.heads]

    def inputs(self, variables: int) -> list[int]:
        self._check(variables)
        return [head.inputs(1)[0] for head in self.heads]

    def kinds(self, variables: int, device: torch.device | str | None = None) -> Tensor:
        self._check(variables)
        return torch.tensor([[HEADS.index(head.kind), head.levels] for head in self.heads], device=device)

    def of(self, variable: int) -> Head:
        return self.heads[variable]

    def support(self, event_shape: torch.Size) -> constraints.Constraint:
        return _PerVariableSupport(self, event_shape)

    def violation(self, x: Tensor, upper: Tensor | None = None) -> Tensor:
        bound = [math.inf if size is None else size for size in self.sizes(x.shape[-1])]
        sizes = torch.tensor(bound, dtype=torch.float64, device=x.device)
        return ~torch.where(sizes.isinf(), x.isfinite(), is_whole(x, sizes))

    def _steps(self, device: torch.device) -> Tensor:
        """(D) levels - 1 for the variables on a grid, 0 for the others."""
        return torch.tensor([max(head.levels - 1, 0) for head in self.heads], device=device)

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.to(dtype)
        if not any(head.levels for head in self.heads):
            return x
        steps = self._steps(x.device)
        return torch.where(steps > 0, 2 * x / steps.clamp(min=1) - 1, x)

    def decode(self, values: Tensor) -> Tensor:
        if not any(head.levels for head in self.heads):
            return values
        steps = self._steps(values.device)
        return torch.where(steps > 0, ((values + 1) / 2 * steps).round(), values)

    def parameters_from_mean(self, mean: Tensor) -> Tensor:
        """(R_out). A category has no mean: whatever mean holds for it, all its categories start equally likely."""
        self._check(len(mean))
        own = [
            mean.new_zeros(head.categories)
            if isinstance(head, Categorical)
            else head.parameters_from_mean(mean[index : index + 1]).flatten()
            for index, head in enumerate(self.heads)
        ]
        return torch.cat(own)

    def initial_parameters(self, variables: int) -> Tensor | None:
        own = [head.initial_parameters(1) for head in self.heads]
        if all(parameters is None for parameters in own):
            return None
        zeros = [torch.zeros(count, dtype=torch.float64) for count in self.counts(variables)]
        return torch.cat([none if given is None else given.flatten() for given, none in zip(own, zeros, strict=True)])

    @property
    def _own_counts(self) -> list[int]:
        return self.counts(len(self.heads))

    def config(self) -> dict[str, Any]:
        return {"name": "PerVariable", "heads": [head.config() for head in self.heads]}

    def __repr__(self) -> str:
        return f"PerVariable({self.heads!r})"


class _PerVariableSupport(constraints.Constraint):
    def __init__(self, head: PerVariable, event_shape: torch.Size) -> None:
        self.head, self.event_shape = head, event_shape
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return ~self.head.violation(value.flatten(-len(self.event_shape))).reshape(value.shape)
