"""Particles of a completion: what they have drawn, and the conditionals of their next variable."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..models import AutoregressiveModel, OffsetNADE
from ..models.offset_nade import _offset_taps


class Particles:
    """The values of the hole, (holes, particles) in the order of the model, as the ops draw them.

    A resampling replaces particles by copies of others. Only the values that a conditional may still read are copied
    then; those before them stay where they are, and ``trace`` follows the ancestors to them.
    """

    def __init__(self, holes: int, count: int, dtype: torch.dtype, device: torch.device) -> None:
        self.values = torch.zeros(holes, count, dtype=dtype, device=device)
        self.count, self.drawn = count, 0
        #: Of each resampling, whom each particle became a copy of.
        self.ancestors: list[Tensor] = []
        # How many resamplings a hole's values have followed. This never falls from one hole to the next.
        self._generation = np.zeros(holes, np.int64)

    def add(self, values: Tensor) -> None:
        self.values[self.drawn] = values
        self._generation[self.drawn] = len(self.ancestors)
        self.drawn += 1

    def resample(self, ancestors: Tensor, first: int) -> None:
        """``first`` is the first hole whose values are copied."""
        self.ancestors.append(ancestors)
        kept = slice(first, self.drawn)
        self.values[kept] = self.values[kept].index_select(1, ancestors)
        self._generation[kept] = len(self.ancestors)

    def trace(self, index: Tensor) -> Tensor:
        """The values of the particles ``index`` (N), as (N, holes)."""
        values = self.values.new_empty(len(index), len(self.values))
        for generation in range(len(self.ancestors), -1, -1):
            start, stop = np.searchsorted(self._generation, [generation, generation + 1])
            values[:, start:stop] = self.values[start:stop].index_select(1, index).T
            if start == 0:
                break
            index = self.ancestors[generation - 1][index]
        return values

    def survivors(self, index: Tensor) -> int:
        """From how many values of the first hole some particles descend."""
        for ancestors in reversed(self.ancestors[self._generation[0] :]):
            index = ancestors[index]
        return index.unique().numel()


class Conditionals(Protocol):
    """The conditionals of the variables at which particles differ.

    Attributes:
        positions: of the hole's variables and the known ones that depend on them, in order.
        log_prob: nats of the known variables that depend on no variable of the hole, in standardised units.
    """

    positions: list[int]
    log_prob: float

    def parameters(self, position: int, particles: Particles) -> Tensor:
        """(particles, K); (1, K) where nothing that was drawn matters."""
        ...

    def take(self, position: int, value: Tensor) -> None:
        """The variable has the value of each particle, (particles), or the same for all, (1)."""
        ...

    def first_read(self, position: int, particles: Particles) -> int:
        """The first hole whose values a conditional after this position reads from the particles."""
        ...

    def resample(self, ancestors: Tensor) -> None: ...


class Steps:
    """Of any model, by begin and next: each variable depends on all those before it.

    Args:
        model: of one fixed order.
        row: (D) by position, encoded and in standardised units, with zeros in the hole.
        hole: (D) bool, by position.
        context: (C) or None.
    """

    def __init__(self, model: AutoregressiveModel, row: Tensor, hole: Tensor, context: Tensor | None) -> None:
        self._model = model
        first = int(hole.int().argmax())
        self.positions = list(range(first, model.variables))
        self._tensors = model._begin(torch.Size((1,)), None if context is None else context[None].to(model.dtype))
        log_prob = row.new_zeros((), dtype=torch.float64)
        for position in range(first):
            value = row[position : position + 1]
            parameters = model._next_parameters(self._tensors, position)
            head = model.head.of(model._variable(position))
            log_prob += head.encoded_log_prob(parameters.unsqueeze(1), value.unsqueeze(1)).sum()
            self.take(position, value)
        self.log_prob = float(log_prob)

    def parameters(self, position: int, particles: Particles) -> Tensor:
        return self._model._next_parameters(self._tensors, position)

    def take(self, position: int, value: Tensor) -> None:
        count = max(len(self._tensors[0]), len(value))
        tensors = tuple(tensor.expand(count, *tensor.shape[1:]) for tensor in self._tensors)
        self._tensors = self._model._append(tensors, position, value.expand(count))

    def first_read(self, position: int, particles: Particles) -> int:
        # The state has what it needs.
        return particles.drawn

    def resample(self, ancestors: Tensor) -> None:
        # A tensor that was only expanded is the same for every particle.
        self._tensors = tuple(
            tensor if tensor.stride(0) == 0 else tensor.index_select(0, ancestors) for tensor in self._tensors
        )


class Windows:
    """Of an OffsetNADE: a variable depends on those in its window only.

    The known variables whose window reaches no hole are evaluated once, for all particles; the others are taken one by
    one, and of their window only the values of the hole differ between particles. Arguments are those of Steps.
    """

    def __init__(self, model: OffsetNADE, row: Tensor, hole: Tensor, context: Tensor | None) -> None:
        self._model, self._row = model, row
        (rows, columns, channels), (up, side) = model.grid, model.window
        taken = hole | _reached(hole.reshape(rows, columns, channels), up, side).flatten()
        self.positions = taken.nonzero().flatten().tolist()
        own = None if context is None else context.to(model.dtype)
        by_variable = row if model.order is None else torch.zeros_like(row).index_copy_(0, model.order, row)
        terms = model._log_prob(by_variable[None], None if own is None else own[None], True)
        terms = model._by_position(terms, 1)[0].masked_fill(taken, 0.0)
        self.log_prob = float(terms.sum(dtype=torch.float64))
        self._bias = model._in_bias(own)
        weight = model._compute(model.in_weight)
        self._categories = model.counts if model._gathers else 0
        self._weight = weight.unflatten(0, (-1, self._categories)) if self._categories else weight
        self._taps = np.array(_offset_taps(model.window)).reshape(-1, 2)
        self._holes = hole.nonzero().flatten().cpu().numpy()
        # The number of each variable of the hole, -1 for known ones.
        self._number = np.full(model.variables, -1)
        self._number[self._holes] = np.arange(len(self._holes))
        # How many positions back a window reaches.
        self._reach = (up * columns + side) * channels + channels - 1

    def _window(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """The positions that a position sees, and the number of each one's input."""
        _, columns, channels = self._model.grid
        pixel, channel = divmod(position, channels)
        down, right = self._taps.T + np.array([[pixel // columns], [pixel % columns]])
        inside = np.flatnonzero((down >= 0) & (right >= 0) & (right < columns))
        own = np.arange(channels)
        seen = ((down[inside] * columns + right[inside])[:, None] * channels + own).ravel()
        inputs = (inside[:, None] * channels + own).ravel()
        earlier = np.arange(channel)
        return (
            np.concatenate([seen, pixel * channels + earlier]),
            np.concatenate([inputs, len(self._taps) * channels + earlier]),
        )

    def _added(self, values: Tensor, inputs: np.ndarray) -> Tensor:
        """values (P, n) -> (P, H), what they add to the hidden units."""
        if not len(inputs):
            return values.new_zeros(len(values), self._weight.shape[-1])
        index = torch.from_numpy(inputs).to(values.device)
        if not self._categories:
            return values @ self._weight.index_select(0, index)
        rows = index * self._categories + values.long()
        return F.embedding_bag(rows, self._weight.flatten(0, 1), mode="sum")

    def parameters(self, position: int, particles: Particles) -> Tensor:
        seen, inputs = self._window(position)
        number = self._number[seen]
        drawn = number >= 0
        known = torch.from_numpy(seen[~drawn]).to(self._row.device)
        state = self._bias + self._added(self._row.index_select(0, known)[None], inputs[~drawn])
        if drawn.any():
            index = torch.from_numpy(number[drawn]).to(self._row.device)
            state = state + self._added(particles.values.index_select(0, index).T, inputs[drawn])
        return self._model._parameters_after(state, position)

    def take(self, position: int, value: Tensor) -> None:
        pass

    def first_read(self, position: int, particles: Particles) -> int:
        return min(particles.drawn, int(np.searchsorted(self._holes, position + 1 - self._reach)))

    def resample(self, ancestors: Tensor) -> None:
        pass


def _reached(hole: Tensor, up: int, side: int) -> Tensor:
    """(rows, columns, channels) bool: which variables have a variable of the hole in their window."""
    pixels = hole.any(2).float()[None, None]
    found = torch.zeros_like(pixels)
    if up > 0:
        # Of the rows above, all but the row itself.
        padded = F.pad(pixels, (side, side, up, 0))[:, :, :-1]
        found = F.max_pool2d(padded, (up, 2 * side + 1), stride=1)
    if side > 0:
        found = torch.maximum(found, F.max_pool2d(F.pad(pixels, (side, 0))[..., :-1], (1, side), stride=1))
    earlier = hole.int().cumsum(2) - hole.int() > 0
    return (found[0, 0] > 0)[..., None] | earlier


def conditionals(model: AutoregressiveModel, row: Tensor, hole: Tensor, context: Tensor | None) -> Conditionals:
    """Those of the model's kind; arguments are those of Steps."""
    if isinstance(model, OffsetNADE):
        return Windows(model, row, hole, context)
    return Steps(model, row, hole, context)
