"""The direction of a flow's density, networks, univariate transforms and log|det| in one call of an op."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import functional
from .._structure import building, version_of
from ..conditioners.conditioner import AddContext, Conditioner, Masked, Unsuitable
from ..conditioners.stepping import Incremental
from .checks import close, random
from .crossover import Crossover, measured
from .fused import Head, activation_of, program_of
from .inverses import acting, global_hooks, graph_needed, hooks_of
from .masked_layers import plain_call
from .plain import activation_name

__all__ = ["Densities", "Density", "Evaluation", "HeadDensity", "Path", "check_density", "crossovers_of_density"]

# The op multiplies whole matrices, which is fastest for layers of few inputs only.
_MOST_INPUTS = 128

#: One evaluation: (x (B, D), context (B, C) or None) -> (y (B, D), log|det dy/dx| (B)).
Path = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
#: The same, or None where the original must run.
Evaluation = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor] | None]


@dataclass(frozen=True)
class Form:
    """What transforms must have in common to run in one call of the op: everything but their tensors.

    Attributes:
        variables: D.
        context_features: C, 0 without a context.
        program: the op's program.
        rest: the op's arguments behind the orders.
        domain: the interval outside of which the original raises an error; None is none.
    """

    variables: int
    context_features: int
    program: tuple[int, ...]
    rest: tuple[Any, ...]
    domain: tuple[float, float] | None


class Density:
    """One transform object as :func:`ar_fast.functional.masked_mlp_flow` takes it.

    Args:
        steps: its conditioner.
        head: its univariate transform.

    Raises:
        Unsuitable: if the op has no such program or transform, or the layers are too large for it.
    """

    def __init__(self, steps: Incremental, head: Head) -> None:
        own = steps.conditioner
        layout = _layout_of(own, head)
        program, terms = _program_of(own)
        activation = activation_of(steps)
        for step in own.steps:
            through = step.function if isinstance(step, AddContext) else None
            if through is not None and activation_name(steps.function(through)) != activation:
                raise Unsuitable("its context passes through another function than its values")
        self.steps = steps
        # For each term of the program its layer, and whether it has a mask.
        layers: list[Any] = [own.steps[term] for term in terms]
        self._terms: list[tuple[Any, bool]] = [
            (steps.function(step.layer), isinstance(step, Masked)) for step in layers
        ]
        self._converted: list[tuple[Tensor | None, int | None, Tensor | None]] = [(None, None, None)] * len(terms)
        if max(layer.weight.shape[1] for layer, _ in self._terms) > _MOST_INPUTS:
            raise Unsuitable(f"it has layers of more than {_MOST_INPUTS} inputs")
        self.hooks = hooks_of(steps.network)
        self._inactive = steps.inactive()
        columns = {None: "none", True: "before", False: "after"}[own.context_first]
        constants = tuple(float(c) for c in head.constants)
        rest = columns, activation, head.name, constants, *layout
        self.form = Form(own.variables, own.context_features, tuple(program), rest, head.domain)

    def usable(self) -> bool:
        """Whether the op computes what a call of the network would do, if it has no ``hooks``."""
        return self.steps.unchanged() and not (self._inactive and acting(self._inactive))

    @property
    def weight(self) -> Tensor:
        """The weight of the first term."""
        layer = self._terms[0][0]
        own = layer._parameters.get("weight")
        return layer.weight if own is None else own

    def add_tensors(self, nothing: Tensor, weights: list[Tensor], masks: list[Tensor], biases: list[Tensor]) -> None:
        """Adds the weight, the mask and the bias of each term, or ``nothing`` for none, to three lists; masks in the
        dtype of the weights, which multiply faster."""
        for index, (layer, has_mask) in enumerate(self._terms):
            # The attributes themselves are slow, and stand for what a parametrisation computes.
            parameters = layer._parameters
            weight = parameters.get("weight")
            if weight is None:
                weight = layer.weight
            bias = parameters["bias"] if "bias" in parameters else layer.bias  # noqa: SIM401
            mask = nothing
            if has_mask:
                mask = layer._buffers.get("mask")
                if mask is None:
                    mask = layer.mask
                if mask.dtype is not weight.dtype:
                    mask = self._mask_as(weight.dtype, index, mask)
            weights.append(weight)
            masks.append(mask)
            biases.append(nothing if bias is None else bias)

    def _mask_as(self, dtype: torch.dtype, index: int, mask: Tensor) -> Tensor:
        source, version, converted = self._converted[index]
        if source is not mask or version != version_of(mask) or converted.dtype is not dtype:
            with building():
                converted = mask.to(dtype)
            self._converted[index] = mask, version_of(mask), converted
        return converted


class Densities:
    """Adjacent transforms of one form in one call of the op, as a :data:`Path`.

    Args:
        transforms: at least one.
        orders: after which of them, by their index, a permutation follows: what gives it, y[:, order()].
        crossovers: where this is faster than the original, without and with gradients; None is everywhere.

    Raises:
        Unsuitable: if the transforms have different forms.
    """

    def __init__(
        self,
        transforms: Sequence[Density],
        orders: Mapping[int, Callable[[], Tensor]] | None = None,
        crossovers: tuple[Crossover, Crossover] | None = None,
    ) -> None:
        if len({own.form for own in transforms}) != 1:
            raise Unsuitable("its transforms have different forms")
        self.transforms, self.form, self.crossovers = list(transforms), transforms[0].form, crossovers
        self.hooks = [hooks for own in transforms for hooks in own.hooks]
        self._orders = dict(orders or {})
        if self.form.domain is not None and len(self.transforms) > 1:
            raise Unsuitable("each of its transforms checks the domain of its input")
        self._program = list(self.form.program)
        columns, activation, head, constants, *layout = self.form.rest
        self._rest = columns, activation, head, list(constants), *layout

    def __call__(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """x (B, D), context (B, C) -> y (B, D) and log|det dy/dx| (B); None where the original must run."""
        form, transforms = self.form, self.transforms
        if not _chosen(x, context, form.variables, form.context_features, transforms[0].weight, self.crossovers):
            return None
        if global_hooks() or any(self.hooks):
            return None
        for own in transforms:
            if not own.usable():
                return None
        if not _inside(form.domain, x):
            return None

        none = _nothing(x.dtype, x.device)
        weights: list[Tensor] = []
        masks: list[Tensor] = []
        biases: list[Tensor] = []
        for own in transforms:
            own.add_tensors(none, weights, masks, biases)
        orders = [self._orders[index]() if index in self._orders else none for index in range(len(transforms))]
        return functional.call(
            "masked_mlp_flow", x, context, weights, masks, biases, self._program, orders, *self._rest
        )


class HeadDensity:
    """One transform object as a :data:`Path`: its network runs as it is, with its hooks and in its mode, and one op
    computes the univariate transforms and log|det| from what it returns. This is for networks that are too large for
    :class:`Density`.

    Args:
        parameters: (x (B, D), context (B, C) or None) -> the network's outputs as stored.
        steps: its conditioner.
        head: its univariate transform.
        crossovers: where this is faster than the original, without and with gradients; None is everywhere.

    Raises:
        Unsuitable: if the op has no such transform.
    """

    def __init__(
        self,
        parameters: Callable[[Tensor, Tensor | None], Tensor],
        steps: Incremental,
        head: Head,
        crossovers: tuple[Crossover, Crossover] | None = None,
    ) -> None:
        own = steps.conditioner
        self._by_parameter, self._scale_first = _layout_of(own, head)
        self._parameters, self._crossovers = parameters, crossovers
        self._variables, self._context_features, self._domain = own.variables, own.context_features, head.domain
        self._transform, self._constants = head.name, [float(c) for c in head.constants]
        self._layer: Any = next(steps.function(step.layer) for step in own.steps if isinstance(step, Masked))

    def __call__(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """x (B, D), context (B, C) -> y (B, D) and log|det dy/dx| (B); None where the original must run."""
        if not _chosen(x, context, self._variables, self._context_features, self._layer.weight, self._crossovers):
            return None
        if not _inside(self._domain, x):
            return None
        parameters = self._parameters(x, context)
        return functional.call(
            "univariate_transform",
            x,
            parameters,
            self._transform,
            self._constants,
            self._by_parameter,
            self._scale_first,
        )


def _layout_of(conditioner: Conditioner, head: Head) -> tuple[bool, bool]:
    """Whether a row of parameters is (K, D), and whether the scale stands before the shift, as the ops take it."""
    if head.columns not in (None, tuple(range(conditioner.parameters)), (1, 0)):
        raise Unsuitable("its parameters are in another order than the op's")
    if head.name == "affine_clamp":
        raise Unsuitable("its clamp has another gradient than the op's")
    return conditioner.by_parameter, head.columns == (1, 0)


def _chosen(
    x: Tensor,
    context: Tensor | None,
    variables: int,
    context_features: int,
    weight: Tensor,
    crossovers: tuple[Crossover, Crossover] | None,
) -> bool:
    """Whether a call is one that an op takes, and where the op is faster."""
    if x.dim() != 2 or x.shape[1] != variables or not x.shape[0] or not plain_call():
        return False
    if context is None:
        if context_features:
            return False
    elif context.shape != (x.shape[0], context_features) or context.dtype != x.dtype:
        return False
    if weight.dtype != x.dtype or weight.device != x.device or torch.is_autocast_enabled(x.device.type):
        return False
    return crossovers is None or crossovers[graph_needed(x, context, weight)].ours(x.shape[0])


def _inside(domain: tuple[float, float] | None, x: Tensor) -> bool:
    return domain is None or bool(((x >= domain[0]) & (x <= domain[1])).all())


@functools.cache
def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What the op takes for no mask, bias or order."""
    with building():
        return torch.empty(0, dtype=dtype, device=device)


def _program_of(conditioner: Conditioner) -> tuple[list[int], list[int]]:
    """The program of a network, and for each of its terms the step that has the layer.

    What the context adds is a term that reads it, or a layer of its own if it passes through a function.
    """
    steps: tuple[Any, ...] = conditioner.steps
    context = functional.MlpLayer.CONTEXT
    program: list[functional.MlpLayer] = []
    terms: list[int] = []
    # Where the values of the program without a context stand in this one.
    values = {0: 0}
    for index, layer in enumerate(program_of(conditioner)):
        sources, steps_of, add = [values[own] for own in layer.sources], list(layer.terms), layer.add
        add = None if add is None else values[add]
        for own in layer.contexts:
            function = steps[own].function
            if function is None and len(sources) < 2:
                sources.append(context)
                steps_of.append(own)
            elif add is None:
                program.append(functional.MlpLayer((context,), activated=function is not None))
                terms.append(own)
                add = len(program)
            else:
                raise Unsuitable("the op has no layer that adds the context to so many values")
        program.append(functional.MlpLayer(tuple(sources), add, layer.activated))
        terms += steps_of
        values[index + 1] = len(program)
    if not any(isinstance(steps[own], Masked) for own in terms):
        raise Unsuitable("it has no masked layer")
    return [number for layer in program for number in layer.numbers()], terms


def check_density(ours: Path, original: Path, conditioner: Conditioner, x: Tensor) -> float:
    """The largest difference between two evaluations, relative to the largest value.

    Raises:
        Unsuitable: if it is more than rounding.
    """
    context = random(x, len(x), conditioner.context_features) if conditioner.context_features else None
    with torch.no_grad():
        found, expected = ours(x, context), original(x, context)
    return max(
        close(own, other, what)
        for own, other, what in zip(found, expected, ("its forward pass", "its log|det|"), strict=True)
    )


#: Crossovers of evaluations, without and with their gradients, by what decides them.
_measured: dict[tuple[Any, ...], tuple[Crossover, Crossover]] = {}


def crossovers_of_density(
    kind: tuple[Any, ...],
    ours: Path,
    original: Path,
    conditioner: Conditioner,
    draw: Callable[[int], Tensor],
    parameters: Sequence[Tensor],
) -> tuple[Crossover, Crossover]:
    """Where our evaluation is faster, and where it is together with its gradients; measured once for transforms of the
    same ``kind`` and structure."""
    like = draw(1)
    key = kind, conditioner, like.dtype, like.device, torch.get_num_threads()
    if key not in _measured:

        def calls(path: Path, training: bool) -> Callable[[int], Callable[[], object]]:
            def of(rows: int) -> Callable[[], object]:
                x = draw(rows)
                context = random(x, rows, conditioner.context_features) if conditioner.context_features else None

                def step() -> object:
                    with torch.set_grad_enabled(training):
                        y, log_det = path(x, context)
                        if not training:
                            return y, log_det
                        return torch.autograd.grad(y.sum() + log_det.sum(), parameters, allow_unused=True)

                return step

            return of

        forward, training = (
            measured(calls(original, training), calls(ours, training), like.device) for training in (False, True)
        )
        _measured[key] = forward, training
    return _measured[key]
