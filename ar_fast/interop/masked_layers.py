"""Masked linear layers of any library: a weight, and a mask of zeros and ones that the layer multiplies it by."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import functional
from .._structure import building, version_of
from ..masks import Mask
from .attaching import shallow
from .checks import close, probe, random, randomized, trying
from .conditioner import Unsuitable, dense_mask
from .crossover import Crossover, measured
from .report import Part

__all__ = ["LayerPlan", "is_masked", "plain_call", "read_layer"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: Crossovers of the forward pass and of a training step, by what decides them.
_measured: dict[tuple[Any, ...], tuple[Crossover, Crossover]] = {}


def is_masked(module: nn.Module) -> bool:
    """Whether a module looks like a masked linear layer: a weight, and a mask of the same size or its transpose."""
    mask, weight = getattr(module, "mask", None), getattr(module, "weight", None)
    if not isinstance(mask, Tensor) or not isinstance(weight, Tensor) or mask.dim() != 2 or weight.dim() != 2:
        return False
    return mask.shape == weight.shape or mask.T.shape == weight.shape


def plain_call() -> bool:
    """Whether the call is an ordinary one. A compiler, a tracer, a transform of torch.func and forward-mode AD see the
    library's own path."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or functional.transformed()
        or forward_ad._current_level >= 0
    )


class LayerPlan:
    """How a masked layer's ``forward`` runs on :func:`ar_fast.functional.masked_linear`."""

    def __init__(self, crossovers: tuple[Crossover, Crossover] | None) -> None:
        self.crossovers = crossovers

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        state = _LayerState(module)
        original = type(module).forward

        def forward(self: nn.Module, input: Tensor) -> Tensor:
            if not plain_call():
                return original(self, input)
            weight = self._parameters.get("weight")
            if weight is None:
                weight = self.weight
            forward_only, training = state.crossovers(weight)
            chosen = (
                training if torch.is_grad_enabled() and (weight.requires_grad or input.requires_grad) else forward_only
            )
            if not chosen.ours(input.numel() // max(1, weight.shape[1])):
                return original(self, input)
            mask = self._buffers.get("mask")
            if mask is None:
                mask = self.mask
            # A mask of another float dtype would decide the output's dtype, or be an error.
            if mask.device != weight.device or (mask.is_floating_point() and mask.dtype != weight.dtype):
                return original(self, input)
            plan = state.plan(mask)
            if plan is None:
                return original(self, input)
            return functional.call("masked_linear", input, weight, self.bias, *plan, "auto", None)

        own = {"forward": types.MethodType(forward, module)}
        if hasattr(type(module), "set_mask"):
            own["set_mask"] = types.MethodType(_setting_mask(state), module)
        return own


def _setting_mask(state: _LayerState) -> Callable[..., Any]:
    """``set_mask`` writes through ``mask.data``, which counts no change of the mask, so the plan is dropped here."""

    def set_mask(self: nn.Module, *arguments: Any, **named: Any) -> Any:
        state.forget()
        return type(self).set_mask(self, *arguments, **named)

    return set_mask


class _LayerState:
    """The plan of the mask that a layer has, and the crossovers of the dtype, device and threads that it runs with."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._crossovers: dict[tuple[Any, ...], tuple[Crossover, Crossover]] = {}
        self.forget()

    def forget(self) -> None:
        self._mask: Tensor | None = None
        self._version: int | None = None
        self._plan: tuple[Tensor | None, ...] | None = None

    def crossovers(self, weight: Tensor) -> tuple[Crossover, Crossover]:
        key = weight.dtype, weight.device, torch.get_num_threads()
        found = self._crossovers.get(key)
        if found is None:
            found = self._crossovers[key] = crossovers_of(self._module)
        return found

    def plan(self, mask: Tensor) -> tuple[Tensor | None, ...] | None:
        """The mask's plan as the op takes it; None if it no longer holds only zeros and ones."""
        if mask is not self._mask or version_of(mask) != self._version:
            self._mask, self._version = mask, version_of(mask)
            self._plan = _plan_of(self._module)
        return self._plan


def _plan_of(module: nn.Module) -> tuple[Tensor | None, ...] | None:
    mask = module.mask
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        return None
    with building():
        return Mask.from_dense(dense_mask(module)).plan


def crossovers_of(module: nn.Module) -> tuple[Crossover, Crossover]:
    """(forward pass, training step), measured once for layers of the same sizes, masks as dense, dtype, device and
    number of threads."""
    weight, mask = module.weight, module.mask
    seen, sorted_rows = int((mask != 0).sum()), _is_staircase(module)
    key = type(module), tuple(weight.shape), seen, sorted_rows, module.bias is None
    key = *key, weight.dtype, weight.device, torch.get_num_threads()
    if key not in _measured:
        with building():
            _measured[key] = _measure(module)
    return _measured[key]


def _is_staircase(module: nn.Module) -> bool:
    mask = Mask.from_dense(dense_mask(module))
    return mask.extents is not None and mask.rows is None and mask.columns is None


def _measure(module: nn.Module) -> tuple[Crossover, Crossover]:
    # A stand-in with parameters of its own: the gradients of the real ones may have hooks.
    stand_in = shallow(module)
    stand_in._parameters = {
        name: None if parameter is None else nn.Parameter(parameter.detach().clone())
        for name, parameter in module._parameters.items()
    }
    if "weight" not in stand_in._parameters:
        stand_in.__dict__["weight"] = module.weight.detach().clone().requires_grad_()
    plan, weight = _plan_of(module), stand_in.weight
    original = type(module).forward

    def ours(self: nn.Module, input: Tensor) -> Tensor:
        return functional.call("masked_linear", input, self.weight, self.bias, *plan, "auto", None)

    def calls(path: Callable[..., Tensor], training: bool) -> Callable[[int], Callable[[], object]]:
        def of(rows: int) -> Callable[[], object]:
            x = random(weight, rows, weight.shape[1]).requires_grad_(training)
            upstream = random(weight, rows, weight.shape[0])
            inputs = [x, *(own for own in (weight, stand_in.bias) if own is not None)]

            def step() -> object:
                if not training:
                    with torch.no_grad():
                        return path(stand_in, x)
                with torch.enable_grad():
                    return torch.autograd.grad(path(stand_in, x), inputs, upstream, allow_unused=True)

            return step

        return of

    return tuple(
        measured(calls(original, training), calls(ours, training), weight.device) for training in (False, True)
    )


def read_layer(name: str, module: nn.Module) -> tuple[LayerPlan | None, Part]:
    """The plan of a masked layer and its part of the report; no plan where the original is faster at every batch size.

    Raises:
        Unsuitable: if the layer is none that the op can replace.
    """
    if "forward" in module.__dict__:
        raise Unsuitable("its forward was replaced on the object")
    if module.weight.dtype not in _DTYPES:
        raise Unsuitable(f"its weight must be float32, float64, bfloat16 or float16, got {module.weight.dtype}")
    if module.weight.is_meta:
        raise Unsuitable("its weight has no values: it is on the meta device")
    if _plan_of(module) is None:
        raise Unsuitable("its mask holds other numbers than zeros and ones")
    copied = probe(module)
    deviation = _deviation(copied)
    _deviation(randomized(copied))
    crossovers = crossovers_of(module)
    forward_only, training = crossovers
    by = f"ar_fast masked_linear (speed-up of the forward pass: {forward_only}; of a training step: {training})"
    plan: LayerPlan | None = LayerPlan(crossovers)
    if forward_only.never and training.never:
        by = f"its own path, which is faster here (ar_fast's forward pass: {forward_only}; training step: {training})"
        plan = None
    return plan, Part(name, type(module).__name__, "plain", "forward", by, deviation)


def _deviation(layer: nn.Module) -> float:
    x = random(layer.weight, 3, layer.weight.shape[1])
    with torch.no_grad(), trying("its forward"):
        expected = type(layer).forward(layer, x)
        found = functional.masked_linear(x, layer.weight, Mask(*layer.weight.shape, *_plan_of(layer)), layer.bias)
    return close(found, expected, "its output")
