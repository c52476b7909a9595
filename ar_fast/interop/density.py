"""The direction of a transform's density, network, univariate transform and log|det| in one call of an op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional
from .._structure import building, version_of
from ..conditioners.conditioner import AddContext, Conditioner, Unsuitable
from ..conditioners.stepping import Incremental
from .checks import close, random
from .crossover import Crossover, measured
from .fused import Head, activation_of, program_of
from .inverses import acting, global_hooks, graph_needed, hooks_of
from .masked_layers import plain_call

__all__ = ["Density", "Path", "check_density", "crossovers_of_density"]

# The op multiplies whole matrices, which is fastest for layers of few inputs only.
_MOST_INPUTS = 128

#: One evaluation: (x (B, D), context (B, C) or None) -> (y (B, D), log|det dy/dx| (B)).
Path = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


# What a context adds: a linear map of it, and the function that it passes through.
_Context = tuple[nn.Module, Callable[[Tensor], Tensor] | None]


class Density:
    """y = f(x) and log|det dy/dx| of one transform object, by :func:`ar_fast.functional.masked_mlp_transform`.

    Args:
        steps: its conditioner.
        head: its univariate transform.
        crossovers: where this is faster than the original, without and with gradients; None is everywhere.

    Raises:
        Unsuitable: if the op has no such program or transform, or the layers are too large for it.
    """

    def __init__(self, steps: Incremental, head: Head, crossovers: tuple[Crossover, Crossover] | None = None) -> None:
        own = steps.conditioner
        if head.columns not in (None, tuple(range(own.parameters)), (1, 0)):
            raise Unsuitable("its parameters are in another order than the op's")
        if head.name == "affine_clamp":
            raise Unsuitable("its clamp has another gradient than the op's")
        self.steps, self.head, self.crossovers = steps, head, crossovers
        layers = program_of(own)
        if not any(layer.terms for layer in layers):
            raise Unsuitable("it has no masked layer")
        self._program = [
            number
            for layer in layers
            for number in functional.MlpLayer(tuple(layer.sources), layer.add, layer.activated).numbers()
        ]
        self._hooks = hooks_of(steps.network)
        self._biased = [
            (
                [steps.function(own.steps[index].layer) for index in layer.terms],
                [_context_of(steps, own.steps[index]) for index in layer.contexts],
            )
            for layer in layers
        ]
        self._masked = [layer for terms, _ in self._biased for layer in terms]
        self._converted: list[tuple[Tensor | None, int | None, Tensor | None]] = [(None, None, None)] * len(
            self._masked
        )
        if max(layer.weight.shape[1] for layer in self._masked) > _MOST_INPUTS:
            raise Unsuitable(f"it has layers of more than {_MOST_INPUTS} inputs")
        first = own.context_features if own.context_first else 0
        scale_first = head.columns == (1, 0)
        self._rest = own.variables, first, activation_of(steps), head.name, [float(c) for c in head.constants]
        self._rest = *self._rest, own.by_parameter, scale_first

    def __call__(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """x (B, D), context (B, C) -> y (B, D) and log|det dy/dx| (B); None where the original must run."""
        own, steps = self.steps.conditioner, self.steps
        if x.dim() != 2 or x.shape[1] != own.variables or not x.shape[0] or not plain_call():
            return None
        if context is None:
            if own.context_features:
                return None
        elif context.shape != (x.shape[0], own.context_features) or context.dtype != x.dtype:
            return None
        if torch.is_autocast_enabled(x.device.type) or global_hooks() or any(self._hooks):
            return None
        if not steps.unchanged() or acting(steps.inactive()):
            return None
        weights = [_parameter(layer, "weight") for layer in self._masked]
        if weights[0].dtype != x.dtype or weights[0].device != x.device:
            return None
        crossovers, domain = self.crossovers, self.head.domain
        if crossovers is not None and not crossovers[graph_needed(x, context, weights[0])].ours(x.shape[0]):
            return None
        if domain is not None and not bool(((x >= domain[0]) & (x <= domain[1])).all()):
            return None

        biases = [self._bias(x, context, *parts) for parts in self._biased]
        columns = [x] if own.context_first is None else [context, x] if own.context_first else [x, context]
        input = x if len(columns) == 1 else torch.cat(columns, 1)
        masks = self._masks(weights)
        return functional.call("masked_mlp_transform", input, weights, masks, biases, self._program, *self._rest)

    def _bias(self, x: Tensor, context: Tensor | None, layers: list[nn.Module], contexts: list[_Context]) -> Tensor:
        """What is added to a layer's sums: the biases of its terms, and what the context adds."""
        total = None
        for layer in layers:
            bias = _parameter(layer, "bias")
            if bias is not None:
                total = bias if total is None else total + bias
        for layer, function in contexts:
            part = F.linear(context, _parameter(layer, "weight"), _parameter(layer, "bias"))
            part = part if function is None else function(part)
            total = part if total is None else total + part
        return x.new_empty(0) if total is None else total

    def _masks(self, weights: list[Tensor]) -> list[Tensor]:
        """The masks in the dtype of the weights, which multiply faster than others."""
        found = []
        for index, (layer, weight) in enumerate(zip(self._masked, weights, strict=True)):
            mask = layer._buffers.get("mask")
            mask = layer.mask if mask is None else mask
            if mask.dtype is not weight.dtype:
                source, version, converted = self._converted[index]
                if source is not mask or version != version_of(mask) or converted.dtype is not weight.dtype:
                    with building():
                        converted = mask.to(weight.dtype)
                    self._converted[index] = mask, version_of(mask), converted
                mask = converted
            found.append(mask)
        return found


def _context_of(steps: Incremental, step: AddContext) -> _Context:
    return steps.function(step.layer), None if step.function is None else steps.function(step.function)


def _parameter(layer: nn.Module, name: str) -> Tensor | None:
    # The attribute itself is slow, and stands for what a parametrisation computes.
    own = layer._parameters.get(name)
    return getattr(layer, name) if own is None else own


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
    parameters: list[Tensor],
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

        _measured[key] = tuple(
            measured(calls(original, training), calls(ours, training), like.device) for training in (False, True)
        )
    return _measured[key]
