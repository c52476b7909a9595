"""Drawing events a run of variables at a time."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .base import AutoregressiveModel

__all__ = ["Sampling"]


@dataclass(frozen=True)
class Request:
    """What is to be drawn, after all checks; rows are events, flattened."""

    model: AutoregressiveModel
    batch: torch.Size
    contexts: Tensor | None  # (N, C): row r takes context r % N
    seed: int
    first_row: int
    temperature: float
    given: Tensor | None  # (rows, D) as head.encode has it, in the data's units
    known: Tensor | None  # (rows, D)

    @property
    def rows(self) -> int:
        return self.batch.numel()


class Sampling:
    """Events that are being drawn: what :meth:`AutoregressiveModel.sampling` returns.

    Each call of ``advance`` draws some more variables of all events. One that is interrupted (Ctrl-C) leaves what the
    calls before it drew, and a later one goes on. The samples are bit for bit those of a single call of ``sample``.

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

    def __init__(self, request: Request, rows: slice) -> None:
        self._request, self._rows = request, rows
        model, count = request.model, rows.stop - rows.start
        contexts = None
        if request.contexts is not None:
            index = torch.arange(rows.start, rows.stop, device=model.device) % request.contexts.shape[0]
            contexts = request.contexts[index]
        self.position = 0
        self._state, self._extra = model._sample_state(count, contexts)
        self._values = torch.zeros(count, model.variables, dtype=model.compute_dtype, device=model.device)
        self._log_prob = torch.zeros(count, dtype=torch.float64, device=model.device)

    @property
    def done(self) -> bool:
        """Whether every variable is drawn."""
        return self.position == self._request.model.variables

    @property
    def samples(self) -> Tensor:
        """The events, (*batch, *event_shape), zeros where they are not drawn yet; dtype as ``sample`` returns."""
        model = self._request.model
        return model.head.decode(self._values).reshape(self._request.batch + model.event_shape)

    @property
    def log_prob(self) -> Tensor:
        """Nats of the variables drawn so far at temperature 1, (*batch), in the compute dtype."""
        return self._log_prob.to(self._request.model.compute_dtype).reshape(self._request.batch)

    @torch.no_grad()
    def advance(self, positions: int | None = None) -> None:
        """Draws the next ``positions`` variables of the order, or as many as are left; None is all of them."""
        request, model = self._request, self._request.model
        if positions is not None and (not isinstance(positions, Integral) or positions < 0):
            raise ValueError(f"Sampling: positions must be an integer >= 0 or None, got {positions!r}")
        start = self.position
        stop = model.variables if positions is None else min(start + int(positions), model.variables)
        units = model.standardization
        given = None if request.given is None else request.given[self._rows]
        known = None if request.known is None else request.known[self._rows]
        values, log_prob, state = model._sample_chunk(
            self._state,
            self._extra,
            seed=request.seed,
            first_index=request.first_row + self._rows.start,
            start=start,
            stop=stop,
            temperature=request.temperature,
            given=given if given is None or units is None else units(given, model.compute_dtype),
            known=known,
        )
        drawn = slice(start, stop) if model.order is None else model.order[start:stop]
        if units is not None:
            values, log_scale = units.inverse(values, drawn), units.log_scale(drawn)
            if given is not None and known is not None:
                values = torch.where(known[:, drawn], given[:, drawn], values)
                log_scale = log_scale.masked_fill(known[:, drawn], 0.0)
            log_prob = log_prob - log_scale.sum(-1)
        self._values[:, drawn] = values
        # From here on nothing can fail: an interrupted call leaves the sampling where it was.
        self._log_prob, self._state, self.position = self._log_prob + log_prob, state, stop
