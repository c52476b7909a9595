"""Evaluates a conditioner of another library one variable at a time, each hidden unit once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._structure import building, version_of
from .conditioner import (
    Add,
    AddContext,
    Conditioner,
    Elementwise,
    GateByContext,
    Masked,
    Normalized,
    Schedule,
    find,
)

__all__ = [
    "Incremental",
    "Prepared",
    "Rows",
    "State",
    "Univariate",
    "broadcast_rows",
    "distinct_rows",
    "rows_of_a_call",
]

#: Inverts a univariate transform: (values (B, n), parameters (B, n, K), indices (n) of the variables) -> (B, n).
Univariate = Callable[[Tensor, Tensor, Tensor], Tensor]

# Rows are inverted in chunks whose values take about this much memory.
_CHUNK_BYTES = 2**27
# Those of one call of an op on the CPU: its caches hold them.
_CACHED_BYTES = 2**22


@dataclass(frozen=True)
class State:
    """Where an evaluation stands.

    Attributes:
        position: how many variables are known.
        variable: the variable whose parameters these are, or None once all are known.
        parameters: (\\*batch, K), or None once all variables are known.
    """

    position: int
    variable: int | None
    parameters: Tensor | None
    _pieces: tuple[Any, ...] = field(repr=False)


class Rows(NamedTuple):
    """What the context adds: one row for each distinct context, and which of them each row of a batch has."""

    values: Tensor
    index: Tensor | None  # type: ignore[assignment]  # a tuple has a method of that name

    def of(self, rows: slice) -> Tensor:
        """What some rows of the batch have; one row if all have the same."""
        if self.index is not None:
            return self.values.index_select(0, self.index[rows])
        return self.values if len(self.values) == 1 else self.values[rows]

    def part(self, start: int, end: int) -> Tensor:
        own = self.values[:, start:end]
        return own if self.index is None else own.index_select(0, self.index)


@dataclass
class Prepared:
    """A step's tensors in the schedule's order: weight and bias, or scale and shift; and what the context adds."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    context: Rows | None = None


class Incremental:
    """A conditioner evaluated one variable at a time: give the value of a variable, get the parameters of the next.

    Each unit is computed once, when the last variable that it sees is known, so that all steps together cost the
    arithmetic of one forward pass. It is differentiable, and reads the network's tensors at every ``begin``.

    Attributes:
        conditioner: the structure that was read from the network.
        network: the network.

    Args:
        schedule: that of a network whose masks never change; None reads the masks of its layers.
        root: the module that holds the network; its modules must stay what they are too. None is the network.

    Example:
        >>> from ar_fast.masks import Mask
        >>> from ar_fast.interop import incremental
        >>> class MaskedLinear(torch.nn.Linear):
        ...     def __init__(self, mask):
        ...         super().__init__(mask.shape[1], mask.shape[0])
        ...         self.register_buffer("mask", mask)
        ...     def forward(self, x):
        ...         return torch.nn.functional.linear(x, self.weight * self.mask, self.bias)
        >>> masks = [Mask.from_degrees([1, 2, 3], [1, 2]), Mask.from_degrees([1, 2], [0, 1, 2])]
        >>> first, second = (MaskedLinear(mask.to_dense()) for mask in masks)
        >>> steps = incremental(torch.nn.Sequential(first, torch.nn.ReLU(), second))
        >>> state = steps.begin(5)
        >>> while state.parameters is not None:
        ...     state = steps.next(state, torch.ones(5))
        >>> state.position
        3
    """

    def __init__(
        self,
        conditioner: Conditioner,
        network: nn.Module,
        schedule: Schedule | None = None,
        root: nn.Module | None = None,
    ) -> None:
        self.conditioner, self.network = conditioner, network
        parts = list((network if root is None else root).modules())
        # Of each module its dictionary of children, and those that it had; of those that had none the dictionary.
        self._tree = [(part._modules, list(part._modules.values())) for part in parts if part._modules]
        self._leaves = [part._modules for part in parts if not part._modules]
        self._stamps: list[tuple[Any, int | None]] = []
        self._device_of: dict[torch.device, list[Any]] = {}
        self._schedule, self._fixed = schedule, schedule is not None
        self._parts = {id(part) for part in parts}
        self._resolve()

    def _resolve(self) -> None:
        """Finds the layers and functions, and notes where each of them and what holds it was found, except where the
        tree has it."""
        paths = self.conditioner.layers()
        self._at = {path: find(self.network, path) for path in paths}
        self._masked = [self._at[step.layer] for step in self.conditioner.steps if isinstance(step, Masked)]
        links = {}
        for path in paths:
            owner = self.network
            for key in path.split("."):
                child = getattr(owner, key)
                links[id(owner), key] = owner, key, child
                owner = child
        self._links = [
            (owner, key, child)
            for owner, key, child in links.values()
            if id(owner) not in self._parts or owner._modules.get(key) is not child
        ]

    def unchanged(self) -> bool:
        """Whether root still holds the modules, and the network the functions, that were found in it."""
        # This runs at every call of a small flow: a loop, since a generator takes twice as long.
        if any(self._leaves):
            return False
        for children, before in self._tree:
            if list(children.values()) != before:
                return False
        for owner, key, child in self._links:
            found = owner._modules.get(key)
            if found is not child and (found is not None or getattr(owner, key, None) is not child):
                return False
        return True

    def inactive(self) -> list[nn.Module]:
        """The modules that must be in evaluation mode."""
        return [self._at[path] for path in self.conditioner.inactive]

    def settle(self) -> Schedule:
        """The schedule of the masks as they are now; it is made again where they have changed.

        Raises:
            Unsuitable: if these masks have none.
        """
        if self._fixed:
            return self._schedule
        # This runs at every call of a small flow, like ``unchanged``.
        same, stamps = self._schedule is not None, self._stamps
        for index, layer in enumerate(self._masked):
            mask = layer._buffers.get("mask")
            if mask is None:
                mask = layer.mask
            if not same or mask is not stamps[index][0] or version_of(mask) != stamps[index][1]:
                same = False
                break
        if not same:
            masks = [layer.mask for layer in self._masked]
            self._schedule = Schedule.of(self.conditioner, self.network)
            self._stamps, self._device_of = [(mask, version_of(mask)) for mask in masks], {}
        return self._schedule

    @functools.cached_property
    def _kept(self) -> set[int]:
        """The values that a masked layer reads."""
        return {step.source for step in self.conditioner.steps if isinstance(step, Masked)}

    def tensors(self) -> list[Tensor | None]:
        """The network's tensors that decide the result, in the order in which ``invert`` takes them."""
        found = []
        for step in self.conditioner.steps:
            if isinstance(step, Elementwise | Add):
                continue
            layer = self._at[step.layer]
            parameters = layer._parameters
            for name in ("weight", "bias"):
                own = parameters.get(name)
                found.append(getattr(layer, name) if own is None else own)
            if isinstance(step, Normalized):
                found += [layer.running_mean, layer.running_var]
        return found

    def begin(self, batch: int | Sequence[int] = (), context: Tensor | None = None) -> State:
        """Starts an evaluation.

        Args:
            batch: the batch shape; with a context it can be left out.
            context: (\\*batch, C) if the network takes a context.

        Returns:
            The state whose ``parameters``, (\\*batch, K), are those of the first variable.

        Raises:
            ValueError: if the context has another shape, or is missing.
        """
        self._resolve()
        shape = (batch,) if isinstance(batch, int) else tuple(batch)
        if (context is None) != (self.conditioner.context_features == 0):
            need = self.conditioner.context_features or "no"
            raise ValueError(f"incremental: the network takes {need} context features, got {_shape(context)}")
        if context is not None:
            if context.shape[-1] != self.conditioner.context_features or shape not in ((), context.shape[:-1]):
                raise ValueError(
                    f"incremental: context must have shape (*batch, {self.conditioner.context_features}) with batch "
                    f"{shape or '(any)'}, got {tuple(context.shape)}"
                )
            shape = tuple(context.shape[:-1])
        rows = math.prod(shape)
        flat = None if context is None else distinct_rows(context.reshape(rows, -1))
        self.settle()
        prepared = self.prepare(self.tensors(), flat)
        weight = prepared[0].weight
        values = [weight.new_empty(rows, 0) for _ in range(len(self.conditioner.steps) + 1)]
        return self._state(shape, prepared, values, None, 0)

    def next(self, state: State, value: Tensor) -> State:
        """The state once ``state.variable`` has taken ``value``, (\\*batch); ``state`` itself stays usable.

        Raises:
            ValueError: if all variables are known, or value has another shape.
        """
        if state.parameters is None:
            raise ValueError(f"incremental: state must have a variable left, got all {state.position} known")
        shape, prepared, values, outputs = state._pieces
        if value.shape != shape:
            raise ValueError(f"incremental: value must have shape {tuple(shape)}, got {tuple(value.shape)}")
        known = torch.cat([values[0], value.reshape(-1, 1).to(values[0].dtype)], 1)
        return self._state(shape, prepared, [known, *values[1:]], outputs, state.position + 1)

    def _state(
        self, shape: Sequence[int], prepared: list[Prepared], values: list[Tensor], outputs: Tensor | None, known: int
    ) -> State:
        own = self._schedule
        if known == self.conditioner.variables:
            return State(known, None, None, (shape, prepared, values, outputs))
        if known in own.level_ends:
            level = len(own.level_ends) - 1 - own.level_ends[::-1].index(known)
            values = list(values)
            outputs = self._grow(prepared, values, level, append=_concatenate)
        level = next(level for level, end in enumerate(own.level_ends) if end > known) - 1
        first = (known - own.level_ends[level]) * self.conditioner.parameters
        parameters = outputs[:, first : first + self.conditioner.parameters].reshape(*shape, -1)
        return State(known, int(own.variables[known]), parameters, (tuple(shape), prepared, values, outputs))

    def invert(
        self,
        y: Tensor,
        univariate: Univariate,
        context: Rows | None = None,
        tensors: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The x whose univariate transforms, with the parameters that the network computes from x, are y.

        Args:
            y: (B, D) in the network's dtype.
            univariate: inverts the transforms of some variables, given their parameters.
            context: the distinct contexts (R, C), and which of them each row has.
            tensors: what :meth:`tensors` returned; None is what it returns now.

        Returns:
            x (B, D), and the parameters (B, D, K).
        """
        tensors = self.tensors() if tensors is None else tensors
        own = self.settle()
        prepared = self.prepare(tensors, context)
        graph = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad
            for tensor in (y, *tensors, None if context is None else context.values)
        )
        if graph:
            return self._invert(y, univariate, prepared, _concatenate)
        units = self.conditioner.variables + sum(len(order.units) for order in own.order)
        size = max(64, _CHUNK_BYTES // (units * y.element_size()))
        if len(y) <= size:
            return self._invert(y, univariate, prepared, _write)
        chunks = []
        for start in range(0, len(y), size):
            rows = slice(start, start + size)
            chunks.append(self._invert(y[rows], univariate, [_of_rows(own, rows) for own in prepared], _write))
        x, parameters = zip(*chunks, strict=True)
        return torch.cat(x), torch.cat(parameters)

    def _invert(
        self, y: Tensor, univariate: Univariate, prepared: list[Prepared], append: Callable[..., Tensor]
    ) -> tuple[Tensor, Tensor]:
        own, count = self._schedule, self.conditioner.parameters
        variables, back = self._on(y.device)[:2]
        values = [y.new_empty(len(y), 0 if append is _concatenate else len(order.units)) for order in own.order]
        y = y.index_select(1, variables)
        found, parameters = [], []
        for level in range(own.levels):
            start, end = own.level_ends[level : level + 2]
            outputs = self._grow(prepared, values, level, append).unflatten(1, (end - start, count))
            x = univariate(y[:, start:end], outputs, variables[start:end])
            values[0] = append(values[0], x, start, end)
            found.append(x)
            parameters.append(outputs)
        return torch.cat(found, 1).index_select(1, back), torch.cat(parameters, 1).index_select(1, back)

    def _grow(
        self, prepared: list[Prepared], values: list[Tensor], level: int, append: Callable[..., Tensor]
    ) -> Tensor:
        """Computes the units of a level, appends those that later levels read, and returns the outputs."""
        own, steps, kept = self._schedule, self.conditioner.steps, self._kept
        pieces: list[Tensor | None] = [None] * (len(steps) + 1)
        for index, (step, given) in enumerate(zip(steps, prepared, strict=True)):
            start, end = own.order[index + 1].ends[level : level + 2]
            if start == end and index < len(steps) - 1:
                continue
            if isinstance(step, Masked):
                piece = _linear(values[step.source], given, start, end, own.order[step.source].ends[level + 1])
            else:
                piece = pieces[step.source]
                if isinstance(step, Elementwise):
                    piece = self._at[step.function](piece)
                elif isinstance(step, Add):
                    piece = piece + pieces[step.other]
                elif isinstance(step, AddContext):
                    piece = piece + given.context.part(start, end)
                elif isinstance(step, GateByContext):
                    piece = piece * given.context.part(start, end)
                else:
                    piece = torch.addcmul(given.bias[start:end], piece, given.weight[start:end])
            pieces[index + 1] = piece
            if index + 1 in kept:
                values[index + 1] = append(values[index + 1], piece, start, end)
        return pieces[-1]

    def by_level(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(D) the variables by level, and (D) where each variable stands among them."""
        self.settle()
        variables, back, *_ = self._on(device)
        return variables, back

    def function(self, path: str) -> Callable[[Tensor], Tensor]:
        """The network's function at a path."""
        return self._at[path]

    def _on(self, device: torch.device) -> list[Any]:
        """The schedule's indices on a device: the variables by level, their inverse, then those of each step."""
        if device not in self._device_of:
            own = self._schedule
            with building():
                parts: list[Any] = [own.variables.to(device), own.variables.argsort().to(device)]
                for index, step in enumerate(self.conditioner.steps):
                    rows = _unless_sorted(own.order[index + 1].units)
                    columns = None
                    if isinstance(step, Masked):
                        columns = own.order[step.source].units
                        if step.source == 0 and self.conditioner.context_first:
                            columns = columns + self.conditioner.context_features
                        elif step.source != 0 or self.conditioner.context_first is None:
                            columns = _unless_sorted(columns)
                    tensors = rows, columns, own.masks[index], own.context_masks[index]
                    parts.append([None if tensor is None else tensor.to(device) for tensor in tensors])
            self._device_of[device] = parts
        return self._device_of[device]

    def prepare(self, tensors: Sequence[Tensor | None], context: Rows | None, masked: bool = True) -> list[Prepared]:
        """The layers' tensors with rows and columns in the order of the schedule, and what the context adds; with zeros
        for masked weights, unless they have no effect where they are used."""
        own, taken, prepared = self.conditioner, iter(tensors), []
        for index, step in enumerate(own.steps):
            if isinstance(step, Elementwise | Add):
                prepared.append(Prepared())
                continue
            weight, bias = next(taken), next(taken)
            rows, columns, mask, context_mask = self._on((bias if weight is None else weight).device)[index + 2]
            if isinstance(step, Masked):
                weight, bias = _select(weight, rows), _select(bias, rows)
                part = None
                if context_mask is not None:
                    of_context = weight[:, own.input_columns[1]]
                    part = Rows(F.linear(context.values, torch.where(context_mask, of_context, 0)), context.index)
                weight = weight if columns is None else weight.index_select(1, columns)
                prepared.append(Prepared(torch.where(mask, weight, 0) if masked else weight, bias, part))
            elif isinstance(step, Normalized):
                mean, variance = next(taken), next(taken)
                scale = torch.rsqrt(variance + self._at[step.layer].eps)
                scale = scale if weight is None else scale * weight
                shift = -mean * scale if bias is None else bias - mean * scale
                prepared.append(Prepared(_select(scale, rows), _select(shift, rows)))
            else:
                added = F.linear(context.values, weight, bias)
                if isinstance(step, GateByContext):
                    added = torch.sigmoid(added)
                elif step.function is not None:
                    added = self._at[step.function](added)
                added = added if rows is None else added.index_select(1, rows)
                prepared.append(Prepared(context=Rows(added, context.index)))
        return prepared


def rows_of_a_call(units: int, like: Tensor) -> int:
    """How many rows an op that keeps so many units of each should get at once."""
    chunk = _CACHED_BYTES if like.device.type == "cpu" else _CHUNK_BYTES
    return max(64, chunk // (units * like.element_size()))


def distinct_rows(context: Tensor) -> Rows:
    """(B, C) -> the rows that differ from the row before them, and which of them each row has."""
    if len(context) < 2:
        return Rows(context, None)
    starts = (context.detach()[1:] != context.detach()[:-1]).any(1)
    if bool(starts.all()):
        return Rows(context, None)
    index = F.pad(starts.cumsum(0), (1, 0))
    first = F.pad(starts.nonzero()[:, 0] + 1, (1, 0))
    if len(first) == 1:
        return Rows(context[:1], None)
    return Rows(context.index_select(0, first), index)


def broadcast_rows(context: Tensor, batch: Sequence[int]) -> Rows:
    r"""(\*, C) that broadcasts to (\*batch, C) -> its rows, and which of them each row of the batch has."""
    rows, index = context.reshape(-1, context.shape[-1]), None
    if 1 < len(rows) < math.prod(batch):
        index = torch.arange(len(rows), device=context.device).reshape(context.shape[:-1]).expand(batch).reshape(-1)
    return Rows(rows, index)


def _linear(below: Tensor, given: Prepared, start: int, end: int, seen: int) -> Tensor:
    bias = None if given.bias is None else given.bias[start:end]
    if seen == 0:
        zeros = below.new_zeros(len(below), end - start)
        piece = zeros if bias is None else zeros + bias
    else:
        piece = F.linear(below[:, :seen], given.weight[start:end, :seen], bias)
    return piece if given.context is None else piece + given.context.part(start, end)


def _concatenate(values: Tensor, piece: Tensor, start: int, end: int) -> Tensor:
    return torch.cat([values, piece], 1)


def _write(values: Tensor, piece: Tensor, start: int, end: int) -> Tensor:
    values[:, start:end] = piece
    return values


def _of_rows(given: Prepared, rows: slice) -> Prepared:
    context = given.context
    if context is None:
        return given
    if context.index is not None:
        context = Rows(context.values, context.index[rows])
    elif len(context.values) > 1:
        context = Rows(context.values[rows], None)
    return Prepared(given.weight, given.bias, context)


def _select(tensor: Tensor | None, rows: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or rows is None else tensor.index_select(0, rows)


def _unless_sorted(units: Tensor) -> Tensor | None:
    return None if torch.equal(units, torch.arange(len(units))) else units


def _shape(context: Tensor | None) -> str:
    return "none" if context is None else f"a context of shape {tuple(context.shape)}"
