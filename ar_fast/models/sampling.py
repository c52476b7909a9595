"""Drawing events: the request, what a model prepares for it, and the loop over rows and positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .base import AutoregressiveModel

__all__ = ["Sampling"]

# Rows are drawn in blocks of about this many multiply-adds per position, and a block in chunks of positions. This
# bounds the memory, and progress and Ctrl-C come every second or so. A GPU draws many rows as fast as few, so that only
# the memory counts there. A row's log_prob is a sum over its chunks, so chunks must not depend on the number of rows.
# Small states take longer chunks, or the calls would cost more than the draws.
_BLOCK_ELEMENTS = 2**21
_BLOCK_ELEMENTS_ON_CUDA = 2**27
_CHUNK_POSITIONS = 4096
_CHUNK_ELEMENTS = 2**18


@dataclass(frozen=True)
class Request:
    """What to draw, after all checks; rows are flattened events."""

    model: AutoregressiveModel
    batch: torch.Size
    contexts: Tensor | None  # (N, C): row r takes context r % N
    seed: int
    first_row: int
    temperature: float
    given: Tensor | None  # (rows, D), encoded by head.encode, in the data's units
    known: Tensor | None  # (rows, D)

    @property
    def rows(self) -> int:
        return self.batch.numel()


@dataclass(frozen=True)
class Rows:
    """Rows of a request that are drawn together; given is in standardised units if the model is standardised."""

    count: int
    context: Tensor | None  # (count, C)
    given: Tensor | None  # (count, D)
    known: Tensor | None  # (count, D)


@dataclass(frozen=True)
class Sampler:
    """What a model prepares once for a request; it then draws all rows and positions.

    Attributes:
        state_features: how many elements the state of a row has.
        begin: takes some rows; returns their state at position 0, (count, state_features) or whatever ``step`` takes,
            and the arguments of ``step`` that depend on the rows. If these leave out given and known, ``step`` gets
            those of the rows.
        step: takes the state and, as keyword arguments, those from ``begin``, seed, temperature, first_index, given,
            known, start and stop; returns the values by position, (count, stop - start), log_prob (count) in float64
            and the state at position stop. It is a sampling op whose other arguments are bound.
        positions: how many positions a step may draw before progress is reported.
    """

    state_features: int
    begin: Callable[[Rows], tuple[Any, dict[str, Any]]]
    step: Callable[..., tuple[Tensor, Tensor, Any]]
    positions: int | None = None


def make_request(
    model: AutoregressiveModel,
    n: int | Sequence[int],
    context: Tensor | None,
    seed: int | None,
    generator: torch.Generator | None,
    first_index: int,
    given: Tensor | None,
    known: Tensor | None,
    clamp: bool,
    temperature: float,
) -> Request:
    """Turns the arguments of ``AutoregressiveModel.sample`` into a request, after all checks."""
    # The order was checked when the model took it; this checks what was written into it since.
    model._settle()
    shape = _inputs.sample_shape(model._name, "n", n)
    _inputs.check_context(model, context)
    contexts = None if context is None else context.reshape(-1, model.context_features)
    batch = shape if context is None else shape + context.shape[:-1]
    if not isinstance(first_index, Integral) or first_index < 0:
        raise ValueError(f"{model._name}: first_index must be an integer >= 0, got {first_index!r}")
    if not (isinstance(temperature, Real) and 0 < temperature < math.inf):
        raise ValueError(f"{model._name}: temperature must be positive and finite, got {temperature!r}")
    given, known = _inputs.flatten_known(model, given, known, clamp, batch)
    seed = _inputs.draw_seed(model._name, seed, generator)
    first_row = int(first_index) * (1 if contexts is None else contexts.shape[0])
    return Request(model, torch.Size(batch), contexts, seed, first_row, float(temperature), given, known)


def block_rows(model: AutoregressiveModel, state_features: int) -> int:
    """The largest number of rows that are drawn together."""
    parameters = model.counts * model.variables if isinstance(model.counts, int) else sum(model.counts)
    elements = _BLOCK_ELEMENTS_ON_CUDA if model.device.type == "cuda" else _BLOCK_ELEMENTS
    return max(1, elements // max(1, state_features * max(1, parameters // model.variables)))


def draw(request: Request, sampler: Sampler, drawn: Callable[[int], object]) -> tuple[Tensor, Tensor]:
    """Draws the request: values (B, D), encoded by head.encode, and log_prob (B) in float64.

    ``drawn`` is called with the number of variables that each step drew.
    """
    block = max(1, min(request.rows, block_rows(request.model, sampler.state_features)))
    positions = sampler.positions or max(_CHUNK_POSITIONS, _CHUNK_ELEMENTS // max(1, sampler.state_features))
    parts = []
    for first in range(0, max(1, request.rows), block):
        part = Sampling(request, sampler, slice(first, min(first + block, request.rows)))
        while request.rows and not part.done:
            start = part.position
            part.advance(positions)
            drawn((part.position - start) * part._rows)
        parts.append(part._so_far())
    if len(parts) == 1:
        return parts[0]
    values, log_prob = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return values, log_prob


class Sampling:
    """Events that are being drawn: what :meth:`AutoregressiveModel.sampling` returns.

    Each call of ``advance`` draws some more variables of all events. An interrupted call (Ctrl-C) keeps what earlier
    calls drew, and a later call continues from there. The samples equal those of a single call of ``sample``, bit for
    bit.

    Attributes:
        position: how many variables of the order are drawn.

    Example:
        >>> from ar_fast.models import NADE
        >>> model = NADE((2, 3), hidden_features=4)
        >>> sampling = model.sampling(5, seed=0)
        >>> while not sampling.done:
        ...     sampling.advance(4)
        >>> torch.equal(sampling.samples, model.sample(5, seed=0))
        True
    """

    def __init__(self, request: Request, sampler: Sampler, rows: slice) -> None:
        self._request, self._sampler = request, sampler
        model, count = request.model, rows.stop - rows.start
        context = None
        if request.contexts is not None:
            index = torch.arange(rows.start, rows.stop, device=model.device) % request.contexts.shape[0]
            context = request.contexts[index]
        self._order, self._units = model.order, model.standardization
        self._given = None if request.given is None else request.given[rows]
        self._known = None if request.known is None else request.known[rows]
        given = self._given
        if given is not None and self._units is not None:
            given = self._units(given, model.compute_dtype)
        self.position = 0
        self._state, arguments = sampler.begin(Rows(count, context, given, self._known))
        self._arguments = {
            "seed": request.seed,
            "first_index": request.first_row + rows.start,
            "temperature": request.temperature,
            "given": given,
            "known": self._known,
            **arguments,
        }
        self._rows = count
        # Everything drawn so far; None before the first step.
        self._drawn: tuple[Tensor, Tensor] | None = None

    @property
    def done(self) -> bool:
        """Whether every variable is drawn."""
        return self.position == self._request.model.variables

    @property
    def samples(self) -> Tensor:
        """The events, (*batch, *event_shape), with zeros where nothing is drawn yet; dtypes are those of ``sample``."""
        model = self._request.model
        return model.head.decode(self._so_far()[0]).reshape(self._request.batch + model.event_shape)

    @property
    def log_prob(self) -> Tensor:
        """Nats of the variables drawn so far at temperature 1, (*batch), in the compute dtype."""
        return self._so_far()[1].to(self._request.model.compute_dtype).reshape(self._request.batch)

    def _so_far(self) -> tuple[Tensor, Tensor]:
        """values (rows, D) by variable, with zeros where nothing is drawn yet, and log_prob (rows) in float64."""
        if self._drawn is not None:
            return self._drawn
        model = self._request.model
        values = torch.zeros(self._rows, model.variables, dtype=model.compute_dtype, device=model.device)
        return values, torch.zeros(self._rows, dtype=torch.float64, device=model.device)

    @torch.no_grad()
    def advance(self, positions: int | None = None) -> None:
        """Draws the next ``positions`` variables of the order, or all that are left if fewer; None draws all."""
        if positions is not None and (not isinstance(positions, Integral) or positions < 0):
            raise ValueError(f"Sampling: positions must be an integer >= 0 or None, got {positions!r}")
        variables, start = self._request.model.variables, self.position
        stop = variables if positions is None else min(start + int(positions), variables)
        values, log_prob, state = self._sampler.step(self._state, start=start, stop=stop, **self._arguments)
        drawn = slice(start, stop) if self._order is None else self._order[start:stop]
        if self._units is not None:
            values, log_scale = self._units.inverse(values, drawn), self._units.log_scale(drawn)
            if self._known is not None:
                known = self._known[:, drawn]
                values, log_scale = torch.where(known, self._given[:, drawn], values), log_scale.masked_fill(known, 0.0)
            log_prob = log_prob - log_scale.sum(-1)
        if self._drawn is not None or self._order is not None or stop < variables:
            so_far, log_prob_so_far = self._so_far()
            if self._order is None:
                so_far[:, drawn] = values
            else:
                so_far.index_copy_(1, drawn, values)
            values, log_prob = so_far, log_prob_so_far + log_prob
        else:
            # The whole order was drawn in one step, whose result may be a part of a larger tensor.
            values = values.contiguous()
        # Nothing can fail after this point: an interrupted call leaves the sampling as it was.
        self._drawn, self._state, self.position = (values, log_prob), state, stop
