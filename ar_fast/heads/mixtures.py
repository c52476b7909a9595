"""Mixture heads: of Gaussians for real variables, of logistic distributions for levels."""

from __future__ import annotations

import abc
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from .._integers import is_integer
from .base import IntegerInterval, OneKind, is_whole
from .categorical import draw_category

__all__ = ["GaussianMixture", "LogisticMixture"]

# Uphill steps to a mode of a mixture of Gaussians. They get slow only where the density is nearly flat.
_MODE_STEPS = 200


class _Mixture(OneKind):
    def __init__(self, components: int) -> None:
        if not is_integer(components) or components < 1:
            raise ValueError(f"{type(self).__name__}: components must be a positive integer, got {components!r}")
        self.components = int(components)

    def counts(self, variables: int) -> int:
        return 3 * self.components

    def _sample(self, parameters: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        logits, means, log_scales = _mixture_parameters(parameters)
        component = draw_category(logits, temperature, generator).unsqueeze(-1)
        mean, log_scale = (part.gather(-1, component).squeeze(-1) for part in (means, log_scales))
        return self._draw_component(mean, log_scale.exp(), temperature, generator)

    @abc.abstractmethod
    def _draw_component(
        self, mean: Tensor, scale: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Draws from components with these means and scales."""

    def initial_parameters(self, variables: int) -> Tensor:
        middle = (self.levels - 1) / 2 if self.levels else 0.0
        return self.parameters_from_mean(torch.full((variables,), middle, dtype=torch.float64))


class GaussianMixture(_Mixture):
    r"""p(x) = sum_k softmax(logits)_k N(x; mean_k, scale_k^2), x real; K logits, K means, K log-scales per variable.

    Log-scales below -7 count as -7 (a scale of 0.0009) and get no gradient, so standardise the data:
    ``model.standardize(data)``. Temperature divides the logits and multiplies the variances.

    Args:
        components: K.

    Source: Uria, Murray, Larochelle, "RNADE", NeurIPS 2013, equations 7 to 10.

    Example:
        >>> GaussianMixture(1).log_prob(torch.zeros(1, 3), torch.zeros(1))
        tensor([-0.9189])
    """

    kind = "gaussian_mixture"

    def sizes(self, variables: int) -> list[int | None]:
        return [None] * variables

    def support(self, event_shape: torch.Size) -> constraints.Constraint:
        return constraints.real

    def violation(self, x: Tensor, upper: Tensor | None = None) -> Tensor:
        return ~x.isfinite()

    def parameters_from_mean(self, mean: Tensor) -> Tensor:
        """Components within one standard deviation around the mean, of unit scale."""
        spread = torch.linspace(-1, 1, self.components + 2, device=mean.device, dtype=mean.dtype)[1:-1]
        zeros = mean.new_zeros(*mean.shape, self.components)
        return torch.cat([zeros, mean.unsqueeze(-1) + spread, zeros], -1)

    def _mean(self, parameters: Tensor) -> Tensor:
        logits, means, _ = _mixture_parameters(parameters)
        return (logits.softmax(-1) * means).sum(-1)

    def _mode(self, parameters: Tensor) -> Tensor:
        logits, means, log_scales = (part.unsqueeze(-2) for part in _mixture_parameters(parameters.double()))
        precision = (-2 * log_scales).exp()
        # (..., K, K): from each mean, for each component.
        x = means.transpose(-1, -2)
        for _ in range(_MODE_STEPS if self.components > 1 else 0):
            log_joint = logits - log_scales - 0.5 * precision * (x - means) ** 2
            pull = log_joint.softmax(-1) * precision
            x = (pull * means).sum(-1, keepdim=True) / pull.sum(-1, keepdim=True)
        log_density = (logits - log_scales - 0.5 * precision * (x - means) ** 2).logsumexp(-1)
        return x.squeeze(-1).gather(-1, log_density.argmax(-1, keepdim=True)).squeeze(-1).to(parameters.dtype)

    def _draw_component(
        self, mean: Tensor, scale: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        normal = torch.empty_like(mean).normal_(generator=generator)
        return mean + scale * math.sqrt(temperature) * normal

    def config(self) -> dict[str, Any]:
        return {"name": "GaussianMixture", "components": self.components}


class LogisticMixture(_Mixture):
    r"""A mixture of logistic distributions over 0 ... levels-1, each value a bin; the bins at the ends are open.

    The levels are fed and modelled on a grid from -1 to 1, with K logits, K means, K log-scales per variable on that
    grid. Log-scales below -7 count as -7. Temperature divides the logits and multiplies the scales. Samples are int64.

    Args:
        components: K.
        levels: how many values there are; 256 for 8-bit images.

    Source: Salimans, Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017, equation 2.

    Example:
        >>> head = LogisticMixture(1, levels=4)
        >>> head.log_prob(torch.zeros(4, 3), torch.arange(4)).exp().sum()
        tensor(1.)
    """

    kind = "logistic_mixture"

    def __init__(self, components: int, levels: int = 256) -> None:
        super().__init__(components)
        if not is_integer(levels) or levels < 2:
            raise ValueError(f"LogisticMixture: levels must be an integer of at least 2, got {levels!r}")
        self.levels = int(levels)

    def sizes(self, variables: int) -> list[int | None]:
        return [self.levels] * variables

    def support(self, event_shape: torch.Size) -> constraints.Constraint:
        return IntegerInterval(0, self.levels - 1)

    def violation(self, x: Tensor, upper: Tensor | None = None) -> Tensor:
        return ~is_whole(x, self.levels)

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return 2 * x.to(dtype) / (self.levels - 1) - 1

    def decode(self, values: Tensor) -> Tensor:
        return ((values + 1) / 2 * (self.levels - 1)).round().long()

    def parameters_from_mean(self, mean: Tensor) -> Tensor:
        """Components around the mean, with a scale of a tenth of the range."""
        spread = torch.linspace(-1, 1, self.components + 2, device=mean.device, dtype=mean.dtype)[1:-1]
        zeros = mean.new_zeros(*mean.shape, self.components)
        center = 2 * mean.unsqueeze(-1) / (self.levels - 1) - 1
        return torch.cat([zeros, center + spread / 2, zeros - math.log(10)], -1)

    def _mean(self, parameters: Tensor) -> Tensor:
        """The sum over levels k >= 1 of P(x >= k), one level at a time."""
        logits, means, log_scales = _mixture_parameters(parameters)
        weight, inverse = logits.softmax(-1), (-log_scales).exp()
        total = torch.zeros_like(means[..., 0])
        for level in range(1, self.levels):
            edge = (2 * level - 1) / (self.levels - 1) - 1
            total += (weight * ((means - edge) * inverse).sigmoid()).sum(-1)
        return total

    def _mode(self, parameters: Tensor) -> Tensor:
        mode = torch.zeros(parameters.shape[:-1], dtype=torch.int64, device=parameters.device)
        best = torch.full(parameters.shape[:-1], -math.inf, dtype=parameters.dtype, device=parameters.device)
        for level in range(self.levels):
            log_prob = self.log_prob(parameters.unsqueeze(-2), torch.full_like(mode, level).unsqueeze(-1)).squeeze(-1)
            mode = torch.where(log_prob > best, level, mode)
            best = torch.maximum(best, log_prob)
        return mode

    def _draw_component(
        self, mean: Tensor, scale: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        uniform = torch.empty_like(mean).uniform_(generator=generator)
        value = mean + scale * temperature * torch.logit(uniform)
        return self.decode(value.clamp(-1, 1))

    def config(self) -> dict[str, Any]:
        return {"name": "LogisticMixture", "components": self.components, "levels": self.levels}


def _mixture_parameters(parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., 3 K) -> logits, means and log-scales, (..., K) each; log-scales are at least -7, as in the kernels."""
    logits, means, log_scales = parameters.unflatten(-1, (3, -1)).unbind(-2)
    return logits, means, log_scales.clamp(min=-7.0)
