"""The inverse of a transform in one call of the op that samples masked networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import functional
from .._structure import building
from ..conditioners.conditioner import Add, AddContext, Conditioner, Elementwise, Masked, Schedule, Unsuitable, find
from ..conditioners.stepping import Incremental, Prepared, Rows, rows_of_a_call
from .plain import activation_name

__all__ = ["Fused", "Head", "activation_of", "program_of"]


@dataclass(frozen=True)
class Head:
    """A univariate transform, as :func:`ar_fast.functional.masked_mlp_sample` knows it.

    Attributes:
        name: the op's name of it.
        constants: the op's constants.
        columns: which of the conditioner's K parameters are the op's first, second, ...; None is all in their order.
        domain: the interval outside of which the original raises an error; None is none.
    """

    name: str
    constants: tuple[float, ...]
    columns: tuple[int, ...] | None = None
    domain: tuple[float, float] | None = None


@dataclass
class _Layer:
    """A layer of the op's program: which values it reads, and the steps that it stands for."""

    sources: list[int] = field(default_factory=list)
    terms: list[int] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    add: int | None = None
    activated: bool = False
    value: int = 0


@dataclass(frozen=True)
class _Structure:
    """What follows from a schedule, on one device."""

    order: Tensor | None
    back: Tensor | None
    extents: list[Tensor]
    unit_ends: list[Tensor]
    out_rows: Tensor | None
    features: int


class Fused:
    """The inverse of a transform whose conditioner and univariate transform the op knows.

    Raises:
        Unsuitable: if the conditioner has another form than the op's programs.
    """

    def __init__(self, steps: Incremental, head: Head) -> None:
        self.steps, self.head = steps, head
        self._layers = program_of(steps.conditioner)
        layers = [functional.MlpLayer(tuple(own.sources), own.add, own.activated) for own in self._layers]
        self._program = [number for layer in layers for number in layer.numbers()]
        self._activation, self._constants = activation_of(steps), [float(c) for c in head.constants]
        self._made: tuple[Schedule, dict[torch.device, _Structure | None]] | None = None

    def fits(self) -> bool:
        """Whether the masks, as they are now, are staircases when the units are sorted, as the op needs them."""
        return self._structure(torch.device("cpu")) is not None

    def __call__(
        self, y: Tensor, context: Rows | None, tensors: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor] | None:
        """y (B, D) -> x (B, D), and log dx/du (B) in y's dtype; without gradients. None where it does not fit."""
        own = self._structure(y.device)
        if own is None:
            return None
        prepared = self.steps.prepare(tensors, context, masked=False)
        size = rows_of_a_call(own.features, y)
        parts = [
            self._rows(own, y[start : start + size].contiguous(), prepared, slice(start, start + size))
            for start in range(0, len(y), size)
        ]
        if len(parts) == 1:
            return parts[0]
        x, log_det = zip(*parts, strict=True)
        return torch.cat(x), torch.cat(log_det)

    def _rows(self, own: _Structure, y: Tensor, prepared: list[Prepared], rows: slice) -> tuple[Tensor, Tensor]:
        weights, biases = [], []
        for index, layer in enumerate(self._layers):
            last = own.out_rows if index == len(self._layers) - 1 else None
            weights += [_select(prepared[term].weight, 0, last) for term in layer.terms]
            added = [prepared[term].bias for term in layer.terms if prepared[term].bias is not None]
            for step in (*layer.terms, *layer.contexts):
                if prepared[step].context is not None:
                    added.append(prepared[step].context.of(rows).expand(len(y), -1))
            bias = sum(added[1:], added[0]) if added else y.new_empty(0)
            biases.append(_select(bias, -1, last).contiguous())
        variables = self.steps.conditioner.variables
        state = y.new_zeros(len(y), own.features)
        # The op itself, since functional.masked_mlp_sample takes ten microseconds to say what is known here.
        structure = self._program, own.order, None, None, y, None, variables, self._activation
        draws = self.head.name, 0, None, 0, 0, 0, variables, 1.0, "auto", False, self._constants
        x, log_det, _ = functional.call(
            "masked_mlp_sample", state, weights, biases, own.extents, own.unit_ends, *structure, *draws
        )
        return (x if own.back is None else x.index_select(1, own.back)), log_det.to(y.dtype)

    def _structure(self, device: torch.device) -> _Structure | None:
        schedule = self.steps.settle()
        if self._made is None or self._made[0] is not schedule:
            with building():
                self._made = schedule, {torch.device("cpu"): self._build(schedule)}
        made = self._made[1]
        if device not in made:
            own = made[torch.device("cpu")]
            with building():
                moved: dict[str, Any] = {
                    part.name: _to(getattr(own, part.name), device) for part in dataclasses.fields(own)
                }
            made[device] = _Structure(**moved)
        return made[device]

    def _build(self, schedule: Schedule) -> _Structure | None:
        conditioner = self.steps.conditioner
        variables, count = conditioner.variables, conditioner.parameters
        out_rows = None
        if self.head.columns is not None and self.head.columns != tuple(range(count)):
            columns = torch.tensor(self.head.columns)
            out_rows = (torch.arange(variables)[:, None] * count + columns).flatten()
        extents = []
        for layer in self._layers:
            for term in layer.terms:
                mask = schedule.masks[term]
                mask = mask if layer is not self._layers[-1] or out_rows is None else mask[out_rows]
                seen = mask.sum(1)
                staircase = torch.arange(mask.shape[1]) < seen[:, None]
                if not torch.equal(mask, staircase) or bool((seen.diff() < 0).any()):
                    return None
                extents.append(seen.to(torch.int32))
        # A unit of level l can be computed once the variables of the levels before l are known.
        levels = torch.searchsorted(torch.tensor(schedule.level_ends), torch.arange(variables), right=True) - 1
        unit_ends = [torch.tensor(schedule.order[own.value].ends)[levels + 1].int() for own in self._layers[:-1]]
        identity = torch.equal(schedule.variables, torch.arange(variables))
        return _Structure(
            order=None if identity else schedule.variables,
            back=None if identity else schedule.variables.argsort(),
            extents=extents,
            unit_ends=unit_ends,
            out_rows=out_rows,
            features=variables + sum(len(schedule.order[own.value].units) for own in self._layers[:-1]),
        )


def program_of(conditioner: Conditioner) -> list[_Layer]:
    """The op's layers: a layer has up to two masked terms, an added value, what the context adds, and an activation."""
    steps, uses = conditioner.steps, conditioner.uses()
    layers: list[_Layer] = []
    made = {0: 0}
    waiting: dict[int, Any] = {}

    def made_as(value: int) -> int:
        """The op's index of a value, whose layer is made now if it waited for more."""
        if value not in made:
            layers.append(waiting.pop(value))
            layers[-1].value = value
            made[value] = len(layers)
        return made[value]

    def open_layer(value: int) -> _Layer | None:
        """The layer of a value that nothing else reads, where more can still be added."""
        layer = waiting.get(value)
        return layer if layer is not None and uses[value] == 1 and not layer.activated else None

    for index, step in enumerate(steps):
        if isinstance(step, Masked):
            layer = _Layer([made_as(step.source)], [index])
        elif isinstance(step, Elementwise):
            layer = open_layer(step.source)
            if layer is None:
                layer = _Layer(add=made_as(step.source))
            else:
                del waiting[step.source]
            layer.activated = True
        elif isinstance(step, AddContext):
            layer = open_layer(step.source)
            if layer is None or not layer.terms:
                raise Unsuitable("the context is added to a value that is not linear")
            del waiting[step.source]
            layer.contexts.append(index)
        elif isinstance(step, Add):
            layer = _sum(step, waiting, open_layer, made_as)
        else:
            raise Unsuitable(f"the op has no layer for {type(step).__name__}")
        waiting[index + 1] = layer
    made_as(len(steps))
    if layers[-1].activated or not layers[-1].terms or made[len(steps)] != len(layers):
        raise Unsuitable("its last layer is not linear")
    return layers


def _sum(step, waiting, open_layer, made_as) -> _Layer:
    for own, other in ((step.source, step.other), (step.other, step.source)):
        layer, second = open_layer(own), open_layer(other)
        if layer is None or not layer.terms or layer.add is not None:
            continue
        if second is not None and second.add is None and len(layer.terms) + len(second.terms) <= 2:
            del waiting[own], waiting[other]
            return _Layer(layer.sources + second.sources, layer.terms + second.terms, layer.contexts + second.contexts)
        layer.add = made_as(other)
        return waiting.pop(own)
    raise Unsuitable("it adds values in a way that the op has not")


def activation_of(steps: Incremental) -> str:
    names = set()
    for step in steps.conditioner.steps:
        functions = [step.function] if isinstance(step, Elementwise) else []
        names |= {activation_name(find(steps.network, path)) for path in functions}
    if None in names or len(names) > 1:
        raise Unsuitable("its activations are not one of those that the op has")
    return names.pop() if names else "relu"


def _select(tensor: Tensor, dim: int, index: Tensor | None) -> Tensor:
    return tensor if index is None or not tensor.numel() else tensor.index_select(dim, index)


def _to(value: object, device: torch.device) -> object:
    if isinstance(value, list):
        return [own.to(device) for own in value]
    return value.to(device) if isinstance(value, Tensor) else value
