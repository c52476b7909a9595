"""Heads: the family of distributions that the conditionals p(x_i | x_<i) are taken from.

A head says what the K parameters of a variable mean. Models hand it parameters (..., D, K) and values (..., D).
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

__all__ = ["Bernoulli", "Head"]


class Head(abc.ABC):
    """The interface of every head."""

    #: K, how many real parameters a variable has.
    parameters_per_variable: int
    #: Which values a variable can take, as a torch.distributions constraint.
    support: constraints.Constraint

    @abc.abstractmethod
    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """parameters (..., D, K), x (..., D) -> log p of each variable in nats, (..., D), in parameters' dtype."""

    @abc.abstractmethod
    def sample(self, parameters: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """parameters (..., D, K), uniforms (..., D) in (0, 1) -> values (..., D), the same for the same uniforms."""

    @abc.abstractmethod
    def mean(self, parameters: Tensor) -> Tensor:
        """parameters (..., D, K) -> expected values (..., D)."""

    @abc.abstractmethod
    def parameters_from_mean(self, mean: Tensor) -> Tensor:
        """Expected values (..., D) -> parameters (..., D, K) that have them: a good start for the output bias."""

    @abc.abstractmethod
    def violation(self, x: Tensor) -> Tensor:
        """Bool, the shape of x: True where a value is outside the support or NaN."""

    @abc.abstractmethod
    def config(self) -> dict[str, object]:
        """What the head was made with, for config.json."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Head) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.config().items())))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.config().items() if key != "name")
        return f"{type(self).__name__}({arguments})"


class Bernoulli(Head):
    """p(x = 1) = sigmoid(logit), x in {0, 1}; K = 1.

    Temperature divides the logit: below 1 it sharpens, above 1 it flattens.

    Example:
        >>> import torch
        >>> Bernoulli().log_prob(torch.zeros(1, 1), torch.ones(1))
        tensor([-0.6931])
    """

    parameters_per_variable = 1
    support = constraints.boolean

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        logits = parameters.squeeze(-1)
        return x.to(logits.dtype) * logits - F.softplus(logits)

    def sample(self, parameters: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        probability = torch.sigmoid(parameters.squeeze(-1) / temperature)
        return (uniforms < probability.to(uniforms.dtype)).to(parameters.dtype)

    def mean(self, parameters: Tensor) -> Tensor:
        return torch.sigmoid(parameters.squeeze(-1))

    def parameters_from_mean(self, mean: Tensor) -> Tensor:
        return torch.logit(mean, eps=1e-3).unsqueeze(-1)

    def violation(self, x: Tensor) -> Tensor:
        return (x != 0) & (x != 1)

    def config(self) -> dict[str, object]:
        return {"name": "Bernoulli"}
