"""A model as a torch.distributions.Distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

if TYPE_CHECKING:
    pass

__all__ = ["AutoregressiveDistribution"]


class AutoregressiveDistribution(Distribution):
    """An autoregressive model, with a context or without.

    Example:
        >>> from ar_fast.models import NADE
        >>> distribution = NADE((2, 3), hidden_features=4).distribution()
        >>> distribution.batch_shape, distribution.event_shape
        (torch.Size([]), torch.Size([2, 3]))
        >>> distribution.log_prob(distribution.sample((5,))).shape
        torch.Size([5])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(self, model: Any, context: Tensor | None = None, batch_shape: torch.Size | None = None) -> None:
        self.model = model
        self.context = context
        if batch_shape is None:
            batch_shape = torch.Size() if context is None else context.shape[:-1]
        # The model itself checks values, as its validate_args says.
        super().__init__(torch.Size(batch_shape), model.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.model.head.support(self.event_shape), len(self.event_shape))

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: Any = None) -> AutoregressiveDistribution:
        shape = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*shape, self.context.shape[-1])
        return type(self)(self.model, context, shape)

    def sample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        return self.model.sample(shape + self.batch_shape if self.context is None else shape, self.context)

    def log_prob(self, value: Tensor) -> Tensor:
        batch = value.shape[: value.dim() - len(self.event_shape)]
        batch = torch.broadcast_shapes(batch, self.batch_shape)
        return self.model.log_prob(value.expand(batch + self.event_shape), self.context)
