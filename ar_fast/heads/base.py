"""The interface of every head, and what several heads share."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.distributions import constraints

from .. import functional

__all__ = ["Head"]


def _comparable(x: Tensor) -> Tensor:
    """The same values in a dtype that can hold every bound: a comparison casts a number to the dtype of x, where 256
    becomes 0 in uint8 and 257 becomes 256 in bfloat16."""
    if not x.is_floating_point():
        return x.long()
    return x.float() if x.dtype.itemsize == 2 else x


def is_whole(x: Tensor, bound: int | Tensor) -> Tensor:
    """Whether each value is one of 0 ... bound - 1."""
    x = _comparable(x)
    inside = (x >= 0) & (x < bound)
    # ONNX has no floor of integers.
    return inside & (x == x.floor()) if x.is_floating_point() else inside


def chosen(x: Tensor, bound: int | Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Which of 0 ... bound - 1 each category chooses, and its factor: what is no category is NaN times the first."""
    inside = is_whole(x, bound)
    return torch.where(inside, x, 0).long(), torch.where(inside, 1.0, torch.nan).to(dtype)


def one_hot(x: Tensor, bound: int, dtype: torch.dtype) -> Tensor:
    """(...) -> (..., bound); NaN in the first column where x is no category."""
    row, factor = chosen(x, bound, dtype)
    return factor.new_zeros(*x.shape, bound).scatter(-1, row.unsqueeze(-1), factor.unsqueeze(-1))


class IntegerInterval(constraints.integer_interval):
    """torch's constraint, for values of any dtype."""

    def check(self, value: Tensor) -> Tensor:
        return super().check(_comparable(value))

    def __repr__(self) -> str:
        # torch takes a leading underscore off the names of its own classes.
        return f"{type(self).__name__}(lower_bound={self.lower_bound}, upper_bound={self.upper_bound})"


class Head(abc.ABC):
    """The interface of every head."""

    #: The name of the head in the ops.
    kind: ClassVar[str]
    #: How many values a variable of a LogisticMixture has; 0 elsewhere.
    levels: int = 0

    @abc.abstractmethod
    def counts(self, variables: int) -> int | list[int]:
        """How many parameters a variable has: one number if all have the same, else one number for each variable.

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

        ``upper`` broadcasts against x: the number of categories of each value's variable, if they differ.
        """

    def supports(self, x: Tensor, upper: Tensor | None = None) -> bool:
        """Whether all values are in the support, in as few passes over x as possible."""
        return not bool(self.violation(x, upper).any())

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """What the head was made with, for config.json."""

    @abc.abstractmethod
    def parameters_from_mean(self, mean: Tensor) -> Tensor:
        """Expected values (D) -> parameters (D, K) that have these means: a good start for the output bias.

        The result is (R_out) if variables differ in K.
        """

    def initial_parameters(self, variables: int) -> Tensor | None:
        """Parameters from which a mixture should start, shaped as in ``parameters_from_mean``; else None."""
        return None

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """parameters (..., D, K), or (..., R_out) if K differs; x (..., D) -> nats of each variable (..., D)."""
        return self.encoded_log_prob(parameters, self.encode(x, parameters.dtype))

    def encoded_log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """The same, for x as ``encode`` returns it."""
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
            parameters: (..., D, K) as a model returns them, or (..., K) of one variable; (..., R_out) if K differs
                from variable to variable. The same holds for every ``parameters`` below.

        Returns:
            (..., D), or (...) of one variable, in units of x; floating.

        Raises:
            ValueError: for a wrong number of parameters; for categories, which have no mean.

        Example:
            >>> Bernoulli().mean(torch.zeros(2, 1))
            tensor([0.5000, 0.5000])
        """
        return self._each(parameters, lambda head, own: head._mean(own))

    def mode(self, parameters: Tensor) -> Tensor:
        """The likeliest values; ties go to the first.

        Exact, except for a GaussianMixture of several components: there a local search climbs from each mean, and the
        highest point wins (Carreira-Perpinan, "Mode-finding for mixtures of Gaussian distributions", TPAMI 2000).
        Shapes and errors are those of ``mean``; bits, categories and levels have the dtypes that ``sample`` returns.

        Example:
            >>> Categorical(3).mode(torch.tensor([0.0, 2.0, 1.0]))
            tensor(1)
        """
        return self._each(parameters, lambda head, own: head._mode(own))

    def sample(
        self, parameters: Tensor, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """One draw from each distribution, by torch's generator: the numbers differ from those of a model's ``sample``.

        Shapes and errors are those of ``mean``; categories and levels are int64, others have the parameters' dtype.

        Args:
            parameters: as for ``mean``.
            temperature: > 0, as the head's class defines it.
            generator: None is torch's default generator.

        Raises:
            ValueError: for a wrong number of parameters, or a temperature that is not positive.

        Example:
            >>> GaussianMixture(2).sample(torch.zeros(4, 5, 6)).shape
            torch.Size([4, 5])
        """
        if not temperature > 0:
            raise ValueError(f"{type(self).__name__}: temperature must be > 0, got {temperature}")
        return self._each(parameters, lambda head, own: head._sample(own, temperature, generator))

    def of(self, variable: int) -> Head:
        """The head of one variable; it differs from this head only if variables have different distributions.

        Example:
            >>> Categorical([2, 3]).of(1)
            Categorical(categories=3)
        """
        return self

    def _each(self, parameters: Tensor, value_of: Callable[[OneKind, Tensor], Tensor]) -> Tensor:
        """Applies value_of(head, (..., K)) -> (...) to all variables at once, or to each one if they differ."""
        own = self._own_counts
        expected = self.counts(1) if own is None else sum(own)
        if parameters.dim() == 0 or parameters.shape[-1] != expected:
            raise ValueError(
                f"{type(self).__name__}: parameters must have {expected} elements in the last dimension, "
                f"got shape {tuple(parameters.shape)}"
            )
        if own is None:
            return value_of(cast(OneKind, self), parameters)
        values = [value_of(cast(OneKind, self.of(i)), part) for i, part in enumerate(parameters.split(own, -1))]
        dtype = functools.reduce(torch.promote_types, [value.dtype for value in values])
        return torch.stack([value.to(dtype) for value in values], -1)

    @property
    def _own_counts(self) -> list[int] | None:
        """The number of parameters of each variable, if the head was made for certain variables."""
        return None

    def inputs(self, variables: int) -> list[int]:
        """How many inputs of a network each variable is: one (its value), or one for each category."""
        return [1] * variables

    def offsets(self, variables: int, device: torch.device | str | None = None) -> Tensor | None:
        """(D + 1) int64, the first parameter of each variable; None if all have the same number."""
        counts = self.counts(variables)
        if isinstance(counts, int):
            return None
        return torch.tensor([0, *counts], device=device).cumsum(0)

    def kinds(self, variables: int, device: torch.device | str | None = None) -> Tensor | None:
        """(D, 2) int64, the number of each variable's head in the ops, and its levels; None if all have one head."""
        return None

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x (..., D) as the ops take it; dtype is that of the parameters."""
        return x

    def decode(self, values: Tensor) -> Tensor:
        """x from the values that the ops draw, (..., D)."""
        return values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Head) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.config().items() if key != "name")
        return f"{type(self).__name__}({arguments})"


class OneKind(Head):
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
