"""Completion of any hole by a model of one fixed order: sequential importance resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._integers import is_integer, is_real
from .._philox import philox_uniform
from .._progress import progress_bar
from ..models import AutoregressiveModel, DeepNADE, _inputs
from ..reference.draws import head_draw
from ._particles import Conditionals, Particles, conditionals

__all__ = ["Completion", "complete"]

# The number of the first particle in the random counter. Samples have small numbers: a particle with the number of a
# sample would find a picture again that the model drew with the same seed.
_FIRST_PARTICLE = 2**62


@dataclass(frozen=True)
class Completion:
    """What :func:`complete` returns.

    Attributes:
        samples: (*n, *event_shape), the known values and draws for the others; dtypes are those of ``model.sample``.
        log_prob_known: nats of the known variables, log p(known), for reals a log-density. If particles were weighted,
            it is an estimate whose exponential has the right mean.
        exact: whether no particle was weighted: then samples are independent draws and log_prob_known is no estimate.
        particles: how many.
        effective_sample_sizes: (W) float64, for each known variable that depends on the hole: how many particles of
            equal weight are worth as much as those with the weights that it leaves, before a resampling.
        resamplings: how often particles were replaced.
        survivors: from how many of the values drawn for the hole's first variable the particles descend at the end.
    """

    samples: Tensor
    log_prob_known: float
    exact: bool
    particles: int
    effective_sample_sizes: Tensor
    resamplings: int
    survivors: int


@torch.no_grad()
def complete(
    model: AutoregressiveModel,
    given: Tensor,
    known: Tensor,
    n: int | Sequence[int] = (),
    context: Tensor | None = None,
    *,
    particles: int = 1000,
    resample_below: float = 0.5,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Completion:
    r"""Draws the unknown variables of one event given the known ones, wherever these are in the model's order.

    Each particle draws the variables of the hole in the order of the model. A known variable within or after the hole
    multiplies a particle's weight by its conditional probability given what the particle drew. Where the effective
    sample size :math:`1 / \sum_k w_k^2` falls below a share of the particles, they are resampled (systematically). The
    completions are chosen among the particles by their weights: they come from p(unknown | known) as the number of
    particles grows, and with few particles they are biased and resemble each other.

    If the known variables are a prefix of the order, this is ``model.sample``, exactly. A DeepNADE conditions on any
    variables itself, by ``model.sample`` too. An OffsetNADE weights particles only by the known variables whose window
    reaches the hole, so that the cost depends on the hole and its surroundings and not on the size of the image.

    Args:
        model: of one fixed order.
        given: the known values, (*event_shape); what it holds for other variables is ignored.
        known: bool, (*event_shape).
        n: how many completions, or a shape of those.
        context: (C) if the model has context_features.
        particles: how many. The memory is a number for each particle and each variable of the hole, and the model's
            state of each particle.
        resample_below: the share of the particles, 0 ... 1, below which an effective sample size leads to a resampling;
            0 is never.
        seed: 0 ... 2^63 - 1; it repeats a completion. None takes one number from generator.
        generator: the seed is drawn from it; None is torch's default generator. Not used if seed is given.
        progress: show a progress bar, on a terminal or in a notebook.

    Raises:
        TypeError: if the model is an Ensemble, a flow or no model.
        ValueError: for a wrong argument; if the known values have probability 0 given each of the particles.

    Source: Doucet, Johansen, "A tutorial on particle filtering and smoothing", 2009.

    Example:
        >>> from ar_fast.models import NADE
        >>> model = NADE((2, 3), hidden_features=4)
        >>> known = torch.tensor([[True, False, False], [True, True, True]])
        >>> found = complete(model, torch.ones(2, 3), known, 5, particles=100, seed=0)
        >>> found.samples.shape, len(found.effective_sample_sizes)
        (torch.Size([5, 2, 3]), 3)
    """
    if not isinstance(model, AutoregressiveModel):
        raise TypeError(f"complete: model must be a model of one fixed order, got {type(model).__name__}")
    model._settle()
    shape = _inputs.sample_shape("complete", "n", n)
    if not is_integer(particles) or isinstance(particles, bool) or particles < 1:
        raise ValueError(f"complete: particles must be a positive integer, got {particles!r}")
    if not (is_real(resample_below) and 0 <= resample_below <= 1):
        raise ValueError(f"complete: resample_below must be a share, 0 ... 1, got {resample_below!r}")
    _inputs.check_context(model, context)
    if context is not None and context.dim() != 1:
        raise ValueError(
            f"complete: context must be that of one event, ({model.context_features},), got {tuple(context.shape)}"
        )
    rows, mask = _inputs.flatten_known(model, given, known, True, torch.Size())
    if rows is None or mask is None:
        raise ValueError("complete: given and known must be tensors, got None")
    hole = ~model._by_position(mask, 1)[0]
    draw_seed = _inputs.draw_seed("complete", seed, generator)
    if isinstance(model, DeepNADE) or not bool((hole[:-1] & ~hole[1:]).any()):
        return _exact(model, given, known, shape, context, draw_seed, progress)
    row = rows if model.standardization is None else model.standardization(rows, model.compute_dtype)
    # What given holds elsewhere must not matter, even where it is NaN.
    row = model._by_position(row.masked_fill(~mask, 0.0), 1)[0]
    found = conditionals(model, row, hole, context)
    # Where no known variable depends on the hole, each particle is a draw.
    exact = not bool((~hole[found.positions]).any())
    drawn = Particles(int(hole.sum()), shape.numel() if exact else int(particles), model.compute_dtype, model.device)
    run = _Run(model, row, hole, drawn, draw_seed, float(resample_below))
    log_prob = found.log_prob + run.walk(found, progress)
    values = drawn.trace(torch.arange(drawn.count, device=model.device) if exact else run.choose(shape.numel()))
    positions = torch.arange(model.variables, device=model.device) if model.order is None else model.order
    variables = positions[hole]
    if model.standardization is not None:
        values = model.standardization.inverse(values, variables)
        log_prob -= float(model.standardization.log_scale(positions[~hole]).sum())
    events = rows.masked_fill(~mask, 0.0).repeat(len(values), 1).index_copy_(1, variables, values)
    return Completion(
        model.head.decode(events).reshape(shape + model.event_shape), log_prob, exact, drawn.count,
        torch.tensor(run.sizes, dtype=torch.float64), len(drawn.ancestors), run.survivors(),
    )  # fmt: skip


def _exact(
    model: AutoregressiveModel,
    given: Tensor,
    known: Tensor,
    shape: torch.Size,
    context: Tensor | None,
    seed: int,
    progress: bool,
) -> Completion:
    """Where the model itself conditions on what is known."""
    samples: Any = model.sample(shape, context, seed=seed, given=given, known=known, progress=progress)
    log_prob = float(model.log_prob(given, context, observed=known))
    count = shape.numel()
    return Completion(samples, log_prob, True, count, torch.zeros(0, dtype=torch.float64), 0, count)


class _Run:
    """Particles, their weights, and the random numbers of one seed; row and hole are those of Steps."""

    def __init__(
        self, model: AutoregressiveModel, row: Tensor, hole: Tensor, particles: Particles, seed: int, below: float
    ) -> None:
        self._model, self._row, self._hole, self._particles = model, row, hole.tolist(), particles
        self._seed, self._below = seed, below
        self._index = torch.arange(particles.count, device=model.device)
        self._log_weights = torch.zeros(particles.count, dtype=torch.float64, device=model.device)
        self.sizes: list[float] = []

    def walk(self, found: Conditionals, progress: bool) -> float:
        """Draws the hole; returns the estimate of the nats of the known variables that depend on it."""
        log_prob, last = 0.0, found.positions[-1]
        with progress_bar(found.positions, unit="variable", show=progress) as bar:
            for position in bar:
                variable = self._model._variable(position)
                head, parameters = self._model.head.of(variable), found.parameters(position, self._particles)
                if self._hole[position]:
                    value = head_draw(
                        parameters.expand(self._particles.count, -1), self._seed, self._index + _FIRST_PARTICLE,
                        torch.tensor(variable, device=parameters.device), head.kind, head.levels, 1.0,
                    )  # fmt: skip
                    self._particles.add(value)
                    found.take(position, value)
                    continue
                value = self._row[position : position + 1]
                terms = head.encoded_log_prob(parameters.unsqueeze(1), value.expand(len(parameters)).unsqueeze(1))
                found.take(position, value)
                size = self._weight(terms[:, 0], variable)
                if size < self._below * self._particles.count and position != last:
                    log_prob += self._mean_weight()
                    ancestors = self._ancestors()
                    self._particles.resample(ancestors, found.first_read(position, self._particles))
                    found.resample(ancestors)
                    self._log_weights.zero_()
        return log_prob + self._mean_weight()

    def _weight(self, terms: Tensor, variable: int) -> float:
        """Multiplies the weights; returns the effective sample size."""
        self._log_weights += terms
        weights = self._log_weights.softmax(0)
        size = float(1 / weights.square().sum())
        if not size > 0:
            # The softmax of nothing but -inf is NaN, as that of a NaN.
            raise ValueError(
                f"complete: given must have a positive probability given what was drawn, got {self._particles.count} "
                f"particles none of which allows the value of variable {variable}: take more particles"
            )
        self.sizes.append(size)
        return size

    def _mean_weight(self) -> float:
        return float(self._log_weights.logsumexp(0)) - math.log(self._particles.count)

    def _ancestors(self) -> Tensor:
        """Systematic resampling: one uniform number moves a comb of evenly spaced teeth over the weights."""
        count = self._particles.count
        # No variable has this number, so that the counter is used for nothing else.
        number = torch.tensor(self._model.variables, device=self._index.device)
        shift = philox_uniform(self._seed, torch.tensor(len(self._particles.ancestors), device=number.device), number)
        return self._pick((self._index + shift) / count)

    def choose(self, n: int) -> Tensor:
        """n particles by their weights, independently."""
        number = torch.tensor(self._model.variables + 1, device=self._index.device)
        return self._pick(philox_uniform(self._seed, torch.arange(n, device=number.device), number))

    def _pick(self, uniform: Tensor) -> Tensor:
        weights = self._log_weights.softmax(0).cumsum(0)
        # Of a particle without a weight, the sum before it is as large as its own: ``right`` passes over it.
        return torch.searchsorted(weights, uniform * weights[-1], right=True).clamp(max=len(weights) - 1)

    def survivors(self) -> int:
        return self._particles.survivors(self._index[self._log_weights > -math.inf])
