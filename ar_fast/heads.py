"""Heads: the family of distributions that the conditionals p(x_i | x_<i) are taken from.

A head says what the parameters of a variable mean. A model gives each variable ``counts`` of them, side by side; the
arithmetic, and what temperature does to a draw, is written down in csrc/kernels/head.h and in ``ar_fast.reference``.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from . import functional
from ._integers import integers
from ._vocabulary import HEADS

__all__ = [
    "Bernoulli",
    "Categorical",
    "GaussianMixture",
    "Head",
    "LogisticMixture",
    "PerVariable",
    "from_config",
]


# float32 has every whole number up to this one.
_MOST_CATEGORIES = 2**24


# Steps uphill to a mode of a mixture of Gaussians. They slow down only where the density is all but flat.
_MODE_STEPS = 200


def _comparable(x: Tensor) -> Tensor:
    """The same values in a dtype that has every bound: a comparison takes a number into the dtype of x, where 256 is 0
    in uint8 and 257 is 256 in bfloat16."""
    if not x.is_floating_point():
        return x.long()
    return x.float() if x.dtype.itemsize == 2 else x


def _is_whole(x: Tensor, bound: int | Tensor) -> Tensor:
    """Whether each value is one of 0 ... bound - 1."""
    x = _comparable(x)
    return (x >= 0) & (x < bound) & (x == x.floor())


class _IntegerInterval(constraints.integer_interval):
    """torch's, for values of any dtype."""

    def check(self, value: Tensor) -> Tensor:
        return super().check(_comparable(value))


class Head(abc.ABC):
    """The interface of every head."""

    #: The name of the head in the ops.
    kind: ClassVar[str]
    #: How many values a variable of a LogisticMixture has; 0 elsewhere.
    levels: int = 0

    @abc.abstractmethod
    def counts(self, variables: int) -> int | list[int]:
        """How many parameters a variable has: one number where all have as many, else one for each variable.

        Raises:
            ValueError: if the head was made for another number of variables.
        """

    @abc.abstractmethod
    def sizes(self, variables: int) -> list[int | None]:
        """How many values each variable can take, 0 ... size-1; None for a real one."""

    @abc.abstractmethod
    def support(self, event_shape: torch.Size) -> constraints.Constraint:
        """Which values the variables of an event can take."""

    @abc.abstractmethod
    def violation(self, x: Tensor, upper: Tensor | None = None) -> Tensor:
        """Bool, the shape of x (..., D): True where a value is outside the support or NaN.

        ``upper`` broadcasts against x: the number of categories of each value's variable, where they differ.
        """

    def supports(self, x: Tensor, upper: Tensor | None = None) -> bool:
        """Whether no value violates the support, in as few passes over x as it takes."""
        return not bool(self.violation(x, upper).any())

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """What the head was made with, for config.json."""

    @abc.abstractmethod
    def parameters_from_mean(self, mean: Tensor) -> Tensor:
        """Expected values (D) -> parameters (D, K) that have them: a good start for the output bias.

        (R_out) where variables differ in K.
        """

    def initial_parameters(self, variables: int) -> Tensor | None:
        """Parameters that a mixture had better start from, as ``parameters_from_mean`` has them; else None."""
        return None

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """parameters (..., D, K), or (..., R_out) where K differs; x (..., D) -> nats of each variable (..., D)."""
        return self.encoded_log_prob(parameters, self.encode(x, parameters.dtype))

    def encoded_log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """The same for x as ``encode`` gives it."""
        variables = x.shape[-1]
        counts = self.counts(variables)
        flat = parameters.reshape(-1, counts * variables if isinstance(counts, int) else sum(counts))
        offsets = self.offsets(variables, parameters.device)
        rows = x.reshape(-1, variables)
        kinds = self.kinds(variables, parameters.device)
        log_prob = functional.head_log_prob(
            flat, rows, offsets=offsets, head=self.kind, levels=self.levels, head_kinds=kinds
        )
        return log_prob.reshape(x.shape)

    def mean(self, parameters: Tensor) -> Tensor:
        """Expected values.

        Args:
            parameters: (..., D, K) as a model returns them, or (..., K) of one variable; (..., R_out) where K differs
                from variable to variable, as every parameter below.

        Returns:
            (..., D), or (...) of one variable, in units of x; floating.

        Raises:
            ValueError: for another number of parameters; for categories, which have no mean.

        Example:
            >>> Bernoulli().mean(torch.zeros(2, 1))
            tensor([0.5000, 0.5000])
        """
        return self._each(parameters, lambda head, own: head._mean(own))

    def mode(self, parameters: Tensor) -> Tensor:
        """The likeliest values; of equally likely ones the first.

        Exact, except for a GaussianMixture of several components: there a local search goes uphill from each mean, and
        the highest end wins (Carreira-Perpinan, "Mode-finding for mixtures of Gaussian distributions", TPAMI 2000).
        Shapes and errors as ``mean``; bits, categories and levels as ``sample`` returns them.

        Example:
            >>> Categorical(3).mode(torch.tensor([0.0, 2.0, 1.0]))
            tensor(1)
        """
        return self._each(parameters, lambda head, own: head._mode(own))

    def sample(
        self, parameters: Tensor, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """One draw from each distribution, by torch's generator: not the numbers that a model's ``sample`` takes.

        Shapes and errors as ``mean``; categories and levels in int64, else the dtype of the parameters.

        Args:
            parameters: as of ``mean``.
            temperature: > 0, as the head's class defines it.
            generator: None is torch's default generator.

        Raises:
            ValueError: for another number of parameters, or a temperature that is not positive.

        Example:
            >>> GaussianMixture(2).sample(torch.zeros(4, 5, 6)).shape
            torch.Size([4, 5])
        """
        if not temperature > 0:
            raise ValueError(f"{type(self).__name__}: temperature must be > 0, got {temperature}")
        return self._each(parameters, lambda head, own: head._sample(own, temperature, generator))

    def of(self, variable: int) -> Head:
        """The head of one variable: another one than this only where variables differ.

        Example:
            >>> Categorical([2, 3]).of(1)
            Categorical(categories=3)
        """
        return self

    def _each(self, parameters: Tensor, value_of: Callable[[_OneKind, Tensor], Tensor]) -> Tensor:
        """value_of(head, (..., K)) -> (...), for every variable where they differ."""
        own = self._own_counts
        expected = self.counts(1) if own is None else sum(own)
        if parameters.dim() == 0 or parameters.shape[-1] != expected:
            raise ValueError(
                f"{type(self).__name__}: parameters must have {expected} elements in the last dimension, "
                f"got shape {tuple(parameters.shape)}"
            )
        if own is None:
            return value_of(self, parameters)
        values = [value_of(self.of(i), part) for i, part in enumerate(parameters.split(own, -1))]
        dtype = functools.reduce(torch.promote_types, [value.dtype for value in values])
        return torch.stack([value.to(dtype) for value in values], -1)

    @property
    def _own_counts(self) -> list[int] | None:
        """The number of parameters of each variable, where the head was made for certain variables."""
        return None

    def inputs(self, variables: int) -> list[int]:
        """How many inputs of a network each variable is: one, its value, or one for each category."""
        return [1] * variables

    def offsets(self, variables: int, device: torch.device | str | None = None) -> Tensor | None:
        """(D + 1) int64, the first parameter of each variable; None where all have as many."""
        counts = self.counts(variables)
        if isinstance(counts, int):
            return None
        return torch.tensor([0, *counts], device=device).cumsum(0)

    def kinds(self, variables: int, device: torch.device | str | None = None) -> Tensor | None:
        """(D, 2) int64, each variable's head as the ops number them, and its levels; None where all have one."""
        return None

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """What the ops take for x (..., D); dtype is that of the parameters."""
        return x

    def decode(self, values: Tensor) -> Tensor:
        """x from what the ops draw, (..., D)."""
        return values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Head) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.config().items() if key != "name")
        return f"{type(self).__name__}({arguments})"


class _OneKind(Head):
    """A head whose variables all have distributions of one kind."""

    @abc.abstractmethod
    def _mean(self, parameters: Tensor) -> Tensor:
        """(..., K) -> (...)."""

    @abc.abstractmethod
    def _mode(self, parameters: Tensor) -> Tensor:
        """(..., K) -> (...)."""

    @abc.abstractmethod
    def _sample(self, parameters: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        """(..., K) -> (...)."""


class Bernoulli(_OneKind):
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
        # 0 and 1 alone are their own squares, in floating point too, but for infinity, which this leaves as NaN.
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


class Categorical(_OneKind):
    """p(x = k) = softmax(logits)_k, x in 0 ... K-1; K logits a variable. Samples are int64.

    Models feed a category by a weight row of its own, never as a number, so relabelling the categories changes nothing.
    Temperature divides the logits.

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
        self.categories = given[0] if isinstance(categories, Integral) else given

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
            return _IntegerInterval(0, self.categories - 1)
        return _IntegerInterval(0, torch.tensor(self.categories).reshape(event_shape) - 1)

    def violation(self, x: Tensor, upper: Tensor | None = None) -> Tensor:
        return ~_is_whole(x, self.categories if upper is None else upper)

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.long()

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
        return _draw_category(parameters, temperature, generator)

    def config(self) -> dict[str, Any]:
        return {"name": "Categorical", "categories": self.categories}


class _Mixture(_OneKind):
    def __init__(self, components: int) -> None:
        if not isinstance(components, Integral) or components < 1:
            raise ValueError(f"{type(self).__name__}: components must be a positive integer, got {components!r}")
        self.components = int(components)

    def counts(self, variables: int) -> int:
        return 3 * self.components

    def _sample(self, parameters: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        logits, means, log_scales = _mixture_parameters(parameters)
        component = _draw_category(logits, temperature, generator).unsqueeze(-1)
        mean, log_scale = (part.gather(-1, component).squeeze(-1) for part in (means, log_scales))
        return self._draw_component(mean, log_scale.exp(), temperature, generator)

    @abc.abstractmethod
    def _draw_component(
        self, mean: Tensor, scale: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Draws from components of these means and scales."""

    def initial_parameters(self, variables: int) -> Tensor:
        middle = (self.levels - 1) / 2 if self.levels else 0.0
        return self.parameters_from_mean(torch.full((variables,), middle, dtype=torch.float64))


class GaussianMixture(_Mixture):
    r"""p(x) = sum_k softmax(logits)_k N(x; mean_k, scale_k^2), x real; K logits, K means, K log-scales a variable.

    Log-scales are cut off at -7 from below (a scale of 0.0009; no gradient there), so standardise the data:
    ``model.standardize(data)``.
    Temperature divides the logits and multiplies the variances.

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
        """Components one standard deviation around the mean, of unit scale."""
        spread = torch.linspace(-1, 1, self.components + 2, device=mean.device, dtype=mean.dtype)[1:-1]
        zeros = mean.new_zeros(*mean.shape, self.components)
        return torch.cat([zeros, mean.unsqueeze(-1) + spread, zeros], -1)

    def _mean(self, parameters: Tensor) -> Tensor:
        logits, means, _ = _mixture_parameters(parameters)
        return (logits.softmax(-1) * means).sum(-1)

    def _mode(self, parameters: Tensor) -> Tensor:
        logits, means, log_scales = (part.unsqueeze(-2) for part in _mixture_parameters(parameters.double()))
        precision = (-2 * log_scales).exp()
        # (..., K, K): from each mean, in the light of each component.
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

    The levels are fed and modelled on a grid from -1 to 1; K logits, K means, K log-scales a variable on that grid.
    Log-scales are cut off at -7 from below. Temperature divides the logits and multiplies the scales. Samples are
    int64.

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
        if not isinstance(levels, Integral) or levels < 2:
            raise ValueError(f"LogisticMixture: levels must be an integer of at least 2, got {levels!r}")
        self.levels = int(levels)

    def sizes(self, variables: int) -> list[int | None]:
        return [self.levels] * variables

    def support(self, event_shape: torch.Size) -> constraints.Constraint:
        return _IntegerInterval(0, self.levels - 1)

    def violation(self, x: Tensor, upper: Tensor | None = None) -> Tensor:
        return ~_is_whole(x, self.levels)

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return 2 * x.to(dtype) / (self.levels - 1) - 1

    def decode(self, values: Tensor) -> Tensor:
        return ((values + 1) / 2 * (self.levels - 1)).round().long()

    def parameters_from_mean(self, mean: Tensor) -> Tensor:
        """Components around the mean, of a tenth of the range."""
        spread = torch.linspace(-1, 1, self.components + 2, device=mean.device, dtype=mean.dtype)[1:-1]
        zeros = mean.new_zeros(*mean.shape, self.components)
        center = 2 * mean.unsqueeze(-1) / (self.levels - 1) - 1
        return torch.cat([zeros, center + spread / 2, zeros - math.log(10)], -1)

    def _mean(self, parameters: Tensor) -> Tensor:
        """The sum over levels k >= 1 of P(x >= k), a level at a time."""
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
    """(..., 3 K) -> logits, means and log-scales, (..., K) each; log-scales end at the kernels' least, -7."""
    logits, means, log_scales = parameters.unflatten(-1, (3, -1)).unbind(-2)
    return logits, means, log_scales.clamp(min=-7.0)


def _draw_category(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """(..., K) -> (...) int64."""
    weights = (logits / temperature).softmax(-1)
    drawn = torch.multinomial(weights.reshape(-1, logits.shape[-1]), 1, generator=generator)
    return drawn.reshape(logits.shape[:-1])


class PerVariable(Head):
    r"""Each variable its own head: the columns of a table, binary, categorical, real or of levels, in one model.

    x is floating, with whole numbers for binary, categorical and level variables; so are samples, in the compute dtype.
    A model feeds each variable as its head wants it: a category by a weight row of its own, never as a number. The
    parameters of a variable are those of its head, side by side. Temperature does to each variable what its head says.

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
            if not isinstance(head, _OneKind):
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
        return [head.counts(1) for head in self.heads]

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
        return ~torch.where(sizes.isinf(), x.isfinite(), _is_whole(x, sizes))

    def _steps(self, device: torch.device) -> Tensor:
        """(D) levels - 1 of the variables on a grid, 0 for the others."""
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
        """(R_out). A category has no mean: whatever mean holds for it, its categories start alike."""
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


_HEADS = {head.__name__: head for head in (Bernoulli, Categorical, GaussianMixture, LogisticMixture, PerVariable)}


def from_config(config: dict[str, Any]) -> Head:
    """The head that ``config()`` described.

    Raises:
        ValueError: if there is no such head, or its arguments are not its own.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in _HEADS:
        raise ValueError(f"heads: name must be one of {', '.join(_HEADS)}, got {name!r}")
    try:
        if name == "PerVariable" and "heads" in arguments:
            arguments["heads"] = [from_config(own) for own in arguments["heads"]]
        return _HEADS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"heads: {name} must be made with its own arguments, got {arguments!r}: {error}") from None
