"""Conditioners of other libraries, described as a list of steps, and the schedule that follows from their masks."""

from __future__ import annotations

import collections
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._structure import building

__all__ = [
    "Add",
    "AddContext",
    "Conditioner",
    "Elementwise",
    "GateByContext",
    "Masked",
    "Normalized",
    "Schedule",
    "Step",
    "Unsuitable",
    "dense_mask",
    "find",
]


class Unsuitable(ValueError):
    """A conditioner that cannot be evaluated one variable at a time; the message is the reason."""


# The steps. Step s makes value s + 1 from earlier values; value 0 is the input. Layers and functions are given by
# their paths below the conditioner, so that a copy of the conditioner has the same steps.


@dataclass(frozen=True)
class Masked:
    """A masked linear map of a value. Where it reads value 0, it may also see the context's columns of the input."""

    source: int
    layer: str


@dataclass(frozen=True)
class Elementwise:
    """A function of each unit: an activation."""

    source: int
    function: str


@dataclass(frozen=True)
class Add:
    """The sum of two values, unit by unit."""

    source: int
    other: int


@dataclass(frozen=True)
class AddContext:
    """Adds a linear map of the context, passed through a function where one is given."""

    source: int
    layer: str
    function: str | None = None


@dataclass(frozen=True)
class GateByContext:
    """Multiplies by the sigmoid of a linear map of the context."""

    source: int
    layer: str


@dataclass(frozen=True)
class Normalized:
    """A batch normalisation in evaluation mode: it scales and shifts each unit."""

    source: int
    layer: str


Step = Masked | Elementwise | Add | AddContext | GateByContext | Normalized


@dataclass(frozen=True)
class Conditioner:
    """The structure of a network that computes K parameters of each of D variables from the variables before it.

    Attributes:
        steps: how the output is made; the last value is the output.
        variables: D.
        parameters: K.
        context_features: C, 0 without a context.
        by_parameter: the output is (K, D) flattened, or else (D, K).
        context_first: the context's columns of the input stand before the variables', or else after them; None if the
            input has no columns for the context.
        inactive: paths of modules that must not act, such as a Dropout: they must be in evaluation mode.
    """

    steps: tuple[Step, ...]
    variables: int
    parameters: int
    context_features: int = 0
    by_parameter: bool = False
    context_first: bool | None = None
    inactive: tuple[str, ...] = ()

    @property
    def input_columns(self) -> tuple[slice, slice]:
        """Where the variables and the context stand in the input."""
        variables, context = self.variables, 0 if self.context_first is None else self.context_features
        if self.context_first:
            return slice(context, context + variables), slice(0, context)
        return slice(0, variables), slice(variables, variables + context)

    def owners(self) -> Tensor:
        """(D K) which variable each output belongs to."""
        index = torch.arange(self.variables * self.parameters)
        return index % self.variables if self.by_parameter else index // self.parameters

    def uses(self) -> Counter[int]:
        """How many steps read each value; the output counts as read."""
        found = Counter([len(self.steps)])
        for step in self.steps:
            found.update([step.source, *([step.other] if isinstance(step, Add) else [])])
        return found

    def layers(self) -> tuple[str, ...]:
        """The paths of all layers and functions, in the order of the steps."""
        paths = []
        for step in self.steps:
            paths += [path for path in (getattr(step, "layer", None), getattr(step, "function", None)) if path]
        return tuple(dict.fromkeys([*paths, *self.inactive]))


def find(root: nn.Module, path: str) -> Any:
    """The module or attribute at a path such as "blocks.0.activation"; an empty path is root."""
    return functools.reduce(getattr, path.split("."), root) if path else root


def dense_mask(layer: Any) -> Tensor:
    """A masked layer's mask as (O, I) bool; a mask stored as (I, O) is transposed where only that fits."""
    mask, weight = layer.mask, layer.weight
    if mask.shape != weight.shape and mask.T.shape == weight.shape:
        mask = mask.T
    return mask != 0


@dataclass(frozen=True)
class _Order:
    """The units of a value by the level at which they are computed.

    ``units``: the stored index of each unit in this order. Level l computes units ends[l] ... ends[l + 1] - 1, so that
    ends[l + 1] units are there for what reads the value at level l.
    """

    units: Tensor
    ends: list[int]


#: The schedules made last.
_recent: collections.deque[Schedule] = collections.deque(maxlen=16)


class Schedule:
    """When each unit of a conditioner can be computed: at level l the variables of the levels before l are known.

    The level of a variable is the longest chain of variables that it depends on, read off the masks. With the masks
    of an ordering each variable has a level of its own; with those of a coupling there are two levels.

    Attributes:
        levels: L.
        variables: the D variables by level.
        level_ends: how many variables the first l levels have, l = 0 ... L.
        order: for each value, its units by level; for value 0 the variables.
        masks: for each step that is :class:`Masked`, its mask (O, I) with rows and columns in these orders.
        context_masks: the same for the context's columns of the input, (O, C), the columns as stored.
        sees_context: (D) bool, or None without a context: whether any parameter of the variable sees the context.
    """

    def __init__(self, conditioner: Conditioner, masks: Sequence[Tensor | None]) -> None:
        """``masks``: of each step that is :class:`Masked`, (O, I) bool as stored.

        Raises:
            Unsuitable: if there is none.
        """
        self.conditioner, self.stored_masks = conditioner, masks
        self._build(masks)

    @classmethod
    def of(cls, conditioner: Conditioner, root: nn.Module) -> Schedule:
        """The schedule of a network; the same object for networks with equal masks, such as copies, if it was made not
        long ago."""
        with building(), torch.no_grad():
            masks = [
                dense_mask(find(root, step.layer)).cpu() if isinstance(step, Masked) else None
                for step in conditioner.steps
            ]
            for made in list(_recent):
                if made.conditioner == conditioner and all(
                    mask is None or torch.equal(mask, own) for mask, own in zip(masks, made.stored_masks, strict=True)
                ):
                    return made
            made = cls(conditioner, masks)
            _recent.append(made)
            return made

    def _build(self, masks: Sequence[Tensor | None]) -> None:
        own, variables = self.conditioner, self.conditioner.variables
        owners = own.owners()
        variable_columns, context_columns = own.input_columns
        reach = self._reach(masks)
        outputs = reach[-1]
        if len(outputs) != len(owners):
            raise Unsuitable(f"it has {len(outputs)} outputs for {variables} variables with {own.parameters} each")
        depends = torch.zeros(variables, outputs.shape[1]).index_add_(0, owners, outputs.float()) > 0
        level = self._levels(depends[:, :variables])
        self.sees_context = depends[:, variables:].any(1) if own.context_features else None
        self.levels = int(level.max()) + 1 if variables else 0
        self.variables = level.argsort(stable=True)
        self.level_ends = _ends(level, self.levels)

        groups = self._groups()
        ready = self._ready(masks, groups, level, owners)
        sees, seen_by = (
            {group: torch.zeros(len(own_ready), dtype=torch.int64) for group, own_ready in ready.items()}
            for _ in range(2)
        )
        for index, (step, mask) in enumerate(zip(own.steps, masks, strict=True)):
            if mask is not None:
                sees[groups[index + 1]] += mask.sum(1)
            if mask is not None and step.source != 0:
                seen_by[groups[step.source]] += mask.sum(0)
        orders = {}
        self.order = [_Order(self.variables, [0, *self.level_ends])]
        last = groups[-1]
        for value in range(1, len(own.steps) + 1):
            group = groups[value]
            if group not in orders:
                own_ready = ready[group]
                if group == last:
                    # The outputs of a level's variables stand together, a variable's in the order of its parameters.
                    place = torch.empty(variables, dtype=torch.int64)
                    place[self.variables] = torch.arange(variables)
                    units = place[owners].argsort(stable=True)
                else:
                    # Units that see fewer others and that more others see come first: so the masks of an ordering are
                    # staircases.
                    units = sees[group].argsort(stable=True)
                    units = units[(-seen_by[group][units]).argsort(stable=True)]
                    units = units[own_ready[units].argsort(stable=True)]
                orders[group] = _Order(units, _ends(own_ready, self.levels))
            self.order.append(orders[group])
        self.masks: list[Tensor | None] = []
        self.context_masks: list[Tensor | None] = []
        for index, (step, mask) in enumerate(zip(own.steps, masks, strict=True)):
            if not isinstance(step, Masked):
                self.masks.append(None)
                self.context_masks.append(None)
                continue
            rows, context = mask[self.order[index + 1].units], None
            if step.source == 0:
                context = rows[:, context_columns] if own.context_first is not None else None
                rows = rows[:, variable_columns]
            self.masks.append(rows[:, self.order[step.source].units].contiguous())
            self.context_masks.append(context)

    def _reach(self, masks: Sequence[Tensor | None]) -> list[Tensor]:
        """For each value (units, D + C) bool: which variables and context columns each unit depends on."""
        own, size = self.conditioner, self.conditioner.variables + self.conditioner.context_features
        variable_columns, context_columns = own.input_columns
        width = own.variables + (0 if own.context_first is None else own.context_features)
        inputs = torch.zeros(width, size)
        inputs[variable_columns, : own.variables] = torch.eye(own.variables)
        if own.context_first is not None:
            inputs[context_columns, own.variables :] = torch.eye(own.context_features)
        reach = [inputs > 0]
        for step, mask in zip(own.steps, masks, strict=True):
            below = reach[step.source]
            if isinstance(step, Masked):
                if mask.shape[1] != len(below):
                    raise Unsuitable(f"{step.layer} reads {mask.shape[1]} units where there are {len(below)}")
                below = mask.float() @ below.float() > 0
            elif isinstance(step, Add):
                if len(below) != len(reach[step.other]):
                    raise Unsuitable(f"it adds {len(reach[step.other])} units to {len(below)}")
                below = below | reach[step.other]
            elif isinstance(step, AddContext | GateByContext):
                below = below.clone()
                below[:, own.variables :] = True
            reach.append(below)
        return reach

    def _levels(self, depends: Tensor) -> Tensor:
        waits_for = depends.sum(1)
        level = torch.full((len(depends),), -1)
        for current in range(len(depends)):
            free = (waits_for == 0) & (level < 0)
            if not bool(free.any()):
                break
            level[free] = current
            waits_for = waits_for - depends[:, free].sum(1)
        if bool((level < 0).any()):
            names = (level < 0).nonzero()[:, 0].tolist()
            raise Unsuitable(f"it is not autoregressive: by its masks variables {names[:5]} depend on themselves")
        return level

    def _groups(self) -> list[int]:
        """For each value the first value that must have its units in the same order: those that are combined unit by
        unit."""
        group = list(range(len(self.conditioner.steps) + 1))
        for index, step in enumerate(self.conditioner.steps):
            if isinstance(step, Masked):
                continue
            together = {group[index + 1], group[step.source], *([group[step.other]] if isinstance(step, Add) else [])}
            group = [min(together) if own in together else own for own in group]
        if group.count(0) > 1:
            raise Unsuitable("its input is changed before the first masked layer")
        return group

    def _ready(
        self, masks: Sequence[Tensor | None], groups: list[int], level: Tensor, owners: Tensor
    ) -> dict[int, Tensor]:
        """For each group of values, the level at which each unit is computed."""
        own = self.conditioner
        variable_columns, _ = own.input_columns
        ready = {groups[-1]: level[owners]}
        for _ in range(self.levels + 1):
            changed = False
            for index, (step, mask) in enumerate(zip(own.steps, masks, strict=True)):
                if mask is None:
                    continue
                below, group = level + 1, groups[index + 1]
                if step.source == 0:
                    mask = mask[:, variable_columns]
                else:
                    below = ready[groups[step.source]]
                new = torch.where(mask, below, 0).amax(1)
                new = torch.maximum(new, ready[group]) if group in ready else new
                changed |= group not in ready or not torch.equal(new, ready[group])
                ready[group] = new
            if not changed:
                break
        if not torch.equal(ready[groups[-1]], level[owners]):
            raise Unsuitable("its units cannot all be computed before the variables that need them")
        return ready


def _ends(level: Tensor, levels: int) -> list[int]:
    """How many entries are below l, for l = 0 ... levels."""
    return [int((level < bound).sum()) for bound in range(levels + 1)]
