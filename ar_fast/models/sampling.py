"""Drawing events: the request, what a model prepares for it, and the loop over rows and positions."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import heads
from .._integers import is_integer, is_real
from .._version import __version__
from . import _files, _inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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
    if not (is_real(temperature) and 0 < temperature < math.inf):
        raise ValueError(f"{model._name}: temperature must be positive and finite, got {temperature!r}")
    given, known = _inputs.flatten_known(model, given, known, clamp, batch)
    seed = _inputs.draw_seed(model._name, seed, generator)
    first_row = _inputs.first_row(
        model._name, first_index, math.prod(batch), 1 if contexts is None else contexts.shape[0]
    )
    return Request(model, torch.Size(batch), contexts, seed, first_row, float(temperature), given, known)


def block_rows(model: AutoregressiveModel, state_features: int) -> int:
    """The largest number of rows that are drawn together."""
    parameters = model.counts * model.variables if isinstance(model.counts, int) else sum(model.counts)
    elements = _BLOCK_ELEMENTS_ON_CUDA if model.device.type == "cuda" else _BLOCK_ELEMENTS
    return max(1, elements // max(1, state_features * max(1, parameters // model.variables)))


def step_positions(sampler: Sampler) -> int:
    """How many positions a call draws."""
    return sampler.positions or max(_CHUNK_POSITIONS, _CHUNK_ELEMENTS // max(1, sampler.state_features))


def draw(request: Request, sampler: Sampler, drawn: Callable[[int], object]) -> tuple[Tensor, Tensor]:
    """Draws the request: the events (B, D) in the dtype of ``sample``, and log_prob (B) in float64.

    ``drawn`` is called with the number of variables that each step drew.
    """
    block = max(1, min(request.rows, block_rows(request.model, sampler.state_features)))
    parts = []
    for first in range(0, max(1, request.rows), block):
        part = Sampling(request, sampler, slice(first, min(first + block, request.rows)))
        for count in part._steps() if request.rows else ():
            drawn(count)
        parts.append((part._events(), part._so_far()[1]))
    if len(parts) == 1:
        return parts[0]
    events, log_prob = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return events, log_prob


def drawn_together(model: AutoregressiveModel, n: int, *, seed: int, temperature: float) -> Sampling | None:
    """What ``model.sampling`` returns, if ``sample`` draws so many events in one block; None if they are more."""
    request = make_request(model, n, None, seed, None, 0, None, None, False, temperature)
    sampler = model._sampler(request)
    if request.rows > block_rows(model, sampler.state_features):
        return None
    return Sampling(request, sampler, slice(0, request.rows))


def sample_dtype(model: AutoregressiveModel) -> torch.dtype:
    """The dtype of the events that ``sample`` returns."""
    if isinstance(model.head, heads.PerVariable):
        return model.compute_dtype
    return model.head.decode(torch.zeros((), dtype=model.compute_dtype, device="cpu")).dtype


def _kept_dtype(request: Request) -> torch.dtype:
    """The smallest dtype that holds what is drawn; given values may be any, and are kept as they are."""
    model = request.model
    sizes = [None] if isinstance(model.head, heads.PerVariable) else model.head.sizes(1)
    if request.given is not None or None in sizes:
        return model.compute_dtype
    largest = max(sizes) - 1
    return next(t for t in (torch.uint8, torch.int16, torch.int32, torch.int64) if largest <= torch.iinfo(t).max)


class Sampling:
    """Events that are being drawn: what :meth:`AutoregressiveModel.sampling` returns.

    Each call of ``advance`` draws some more variables of all events. An interrupted call (Ctrl-C) keeps what earlier
    calls drew, and a later call continues from there. The samples equal those of a single call of ``sample``, bit for
    bit. ``state_dict`` is where the draw stands, from which another process goes on with ``load_state_dict``.

    The memory that grows with an event is that of ``values``: one byte for each variable that has at most 256 values.

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
        self._kept = _kept_dtype(request)
        # Everything drawn so far, (rows, D) by variable and log_prob (rows) in float64; None before the first step.
        # Values are in the kept dtype, and decoded if that is an integer; or, where one step drew all of them, as the
        # op returned them: encoded, in the compute dtype.
        self._drawn: tuple[Tensor, Tensor] | None = None

    @property
    def done(self) -> bool:
        """Whether every variable is drawn."""
        return self.position == self._request.model.variables

    @property
    def samples(self) -> Tensor:
        """The events, (*batch, *event_shape), with zeros where nothing is drawn yet; dtypes are those of ``sample``."""
        return self._shaped(self._events())

    @property
    def values(self) -> Tensor:
        """The samples in the smallest dtype that holds them, which is how they are kept: this is no copy.

        That is uint8 for bits and for up to 256 levels or categories, int16 or int32 for more; for reals, within a
        heads.PerVariable and where ``given`` was given it is the dtype of ``samples``.
        """
        return self._shaped(self._events() if self._kept.is_floating_point else self._compact())

    @property
    def drawn(self) -> Tensor:
        """Which variables are drawn, (*event_shape) bool on the model's device."""
        model = self._request.model
        drawn = torch.zeros(model.variables, dtype=torch.bool, device=model.device)
        drawn[slice(0, self.position) if self._order is None else self._order[: self.position]] = True
        return drawn.reshape(model.event_shape)

    @property
    def log_prob(self) -> Tensor:
        """Nats of the variables drawn so far at temperature 1, (*batch), in the compute dtype."""
        return self._so_far()[1].to(self._request.model.compute_dtype).reshape(self._request.batch)

    def _shaped(self, values: Tensor) -> Tensor:
        return values.reshape(self._request.batch + self._request.model.event_shape)

    def _events(self) -> Tensor:
        """(rows, D) in the dtype of ``sample``."""
        model, values = self._request.model, self._so_far()[0]
        return model.head.decode(values) if values.dtype == model.compute_dtype else values.to(sample_dtype(model))

    def _compact(self) -> Tensor:
        """(rows, D) in the kept dtype; encoded if that is floating."""
        values = self._so_far()[0]
        return values if values.dtype == self._kept else self._in_kept_dtype(values)

    def _in_kept_dtype(self, values: Tensor) -> Tensor:
        return values if self._kept.is_floating_point else self._request.model.head.decode(values).to(self._kept)

    def _so_far(self) -> tuple[Tensor, Tensor]:
        """values (rows, D) by variable, with zeros where nothing is drawn yet, and log_prob (rows) in float64."""
        if self._drawn is not None:
            return self._drawn
        model = self._request.model
        values = torch.zeros(self._rows, model.variables, dtype=self._kept, device=model.device)
        if self._kept.is_floating_point:
            values = model.head.encode(values, self._kept).to(self._kept)
        return values, torch.zeros(self._rows, dtype=torch.float64, device=model.device)

    def _steps(self) -> Iterator[int]:
        """Draws all that is left, a piece at a time; gives after each how many variables it had in all rows."""
        sampler = self._sampler
        piece = step_positions(sampler)
        while not self.done:
            start = self.position
            self.advance(piece)
            yield (self.position - start) * self._rows

    @torch.no_grad()
    def advance(self, positions: int | None = None) -> None:
        """Draws the next ``positions`` variables of the order, or all that are left if fewer; None draws all."""
        if positions is not None and (not is_integer(positions) or positions < 0):
            raise ValueError(f"Sampling: positions must be an integer >= 0 or None, got {positions!r}")
        variables, start = self._request.model.variables, self.position
        stop = variables if positions is None else min(start + int(positions), variables)
        values, log_prob, state = self._sampler.step(self._state, start=start, stop=stop, **self._arguments)
        drawn: Any = slice(start, stop) if self._order is None else self._order[start:stop]
        if self._units is not None:
            values, log_scale = self._units.inverse(values, drawn), self._units.log_scale(drawn)
            if self._known is not None:
                known = self._known[:, drawn]
                values, log_scale = torch.where(known, self._given[:, drawn], values), log_scale.masked_fill(known, 0.0)
            log_prob = log_prob - log_scale.sum(-1)
        if self._drawn is not None or self._order is not None or stop < variables:
            so_far, log_prob_so_far = self._so_far()
            values = self._in_kept_dtype(values)
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

    def state_dict(self) -> dict[str, Tensor]:
        """Where the draw stands, as tensors that safetensors can write; they share memory with this object.

        Write them before you look at them again after another ``advance``; ``ar_fast.training.Checkpoint`` writes them
        into a file that is always whole. It holds ``values``, the state of the model's sampler, and what identifies the
        request: a digest of the model's weights and of the arguments, and the seed, first_index and temperature.
        """
        values, log_prob = self._compact(), self._so_far()[1]
        state = {"position": torch.tensor(self.position), **self._identity, "values": values, "log_prob": log_prob}
        return state | {f"state.{index}": tensor for index, tensor in enumerate(self._states)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what ``state_dict`` returned, in this process or another, to the same samples bit for bit.

        This object must be of the same request: ``sampling`` of a model with the same weights, called with the same
        arguments and the same seed. Bits are the same on a machine with the same instruction set.

        Raises:
            ValueError: if the state is of another request, or no such state; this object does not change then.
        """
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(f"Sampling: state must have the tensors {sorted(own)}, got {sorted(state)}")
        for name, tensor in own.items():
            given = state[name]
            if given.shape != tensor.shape or given.dtype != tensor.dtype:
                raise ValueError(
                    f"Sampling: {name} must be {tensor.dtype} of shape {tuple(tensor.shape)}, got {given.dtype} of "
                    f"shape {tuple(given.shape)}"
                )
        for name, tensor in self._identity.items():
            if name != "digest" and not torch.equal(state[name].cpu(), tensor):
                raise ValueError(f"Sampling: {name} must be {tensor.item()}, got a state with {state[name].item()}")
        if not torch.equal(state["digest"].cpu(), self._identity["digest"]):
            raise ValueError(
                "Sampling: state must be of a model with these weights, of these arguments and of this version of "
                "ar_fast, got another one"
            )
        position, variables = int(state["position"]), self._request.model.variables
        if not 0 <= position <= variables:
            raise ValueError(f"Sampling: position must be in 0 ... {variables}, got {position}")
        # Copies: what is given may be the state of another draw, which goes on.
        device = self._request.model.device
        values, log_prob, *states = (
            state[name].to(device, copy=True)
            for name in ("values", "log_prob", *(f"state.{index}" for index in range(len(self._states))))
        )
        self._state = tuple(states) if isinstance(self._state, tuple) else states[0]
        self._drawn, self.position = (values, log_prob), position

    @property
    def _states(self) -> tuple[Tensor, ...]:
        return self._state if isinstance(self._state, tuple) else (self._state,)

    @functools.cached_property
    def _identity(self) -> dict[str, Tensor]:
        """What tells this draw from others, on the CPU."""
        request = self._request
        others = {"context": request.contexts, "given": request.given, "known": request.known}
        # Another version may compute other bits.
        digest = hashlib.sha256(_files.digest(request.model, others))
        digest.update(f"{__version__} {tuple(request.batch)} {self._rows}".encode())
        return {
            "seed": torch.tensor(request.seed),
            "first_index": torch.tensor(self._arguments["first_index"]),
            "temperature": torch.tensor(request.temperature, dtype=torch.float64),
            "digest": torch.tensor(list(digest.digest()), dtype=torch.uint8),
        }
