"""A flow as a torch.distributions.Distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from ..models.distribution import AutoregressiveDistribution

__all__ = ["FlowDistribution"]


class FlowDistribution(AutoregressiveDistribution):
    """A flow, with a context or without; its samples have gradients.

    Example:
        >>> from ar_fast.flows import MAF
        >>> distribution = MAF(3).distribution()
        >>> distribution.batch_shape, distribution.event_shape, distribution.has_rsample
        (torch.Size([]), torch.Size([3]), True)
        >>> distribution.rsample((5,)).requires_grad
        True
    """

    has_rsample = True

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    def rsample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        return self.model.rsample(shape + self.batch_shape if self.context is None else shape, self.context)
