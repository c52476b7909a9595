"""Masked linear layers of any library: a weight, and a mask of zeros and ones that the layer multiplies it by."""

from __future__ import annotations

import bisect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import _library, functional
from .._structure import building, version_of
from ..conditioners.conditioner import Unsuitable, dense_mask
from ..masks import Mask
from .attaching import shallow
from .checks import close, probe, random, randomized, trying
from .crossover import Crossover, measured
from .report import Part

__all__ = ["LayerPlan", "is_masked", "plain_call", "read_layer"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: Crossovers of the forward pass and of a training step, by what decides them.
_measured: dict[tuple[Any, ...], tuple[Crossover, Crossover]] = {}


def is_masked(module: Any) -> bool:
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
    """How a masked layer's ``forward`` runs on :func:`ar_fast.functional.masked_linear`.

    Args:
        crossovers: of the forward pass and of a training step, where it was planned; None runs it at every batch size,
            without asking which path is faster: to measure it.
    """

    def __init__(self, crossovers: tuple[Crossover, Crossover] | None = None) -> None:
        self.always = crossovers is None
        # Smaller batches go to the original at once.
        self.least_rows = 0 if crossovers is None else min(own.least for own in crossovers)

    def attributes(self, module: Any) -> dict[str, Any]:
        state, least = _LayerState(module, self.always), self.least_rows * module.weight.shape[1]
        original = type(module).forward
        # Looked up once: small layers take some ten microseconds.
        compiling, tracing = torch.compiler.is_compiling, torch._C._get_tracing_state
        transforms, recording = torch._C._functorch.maybe_current_level, torch.is_grad_enabled

        def forward(self: Any, input: Tensor) -> Tensor:
            if input.numel() < least:
                return original(self, input)
            # The conditions of plain_call.
            if compiling() or tracing() or transforms() is not None or forward_ad._current_level >= 0:
                return original(self, input)
            parameters = self._parameters
            weight = parameters.get("weight")
            if weight is None:
                weight = self.weight
            plan = state.plan(self, weight)
            if plan is None:
                return original(self, input)
            trains = recording() and (weight.requires_grad or input.requires_grad)
            rows, choices = state.training if trains else state.forward_only
            if not choices[bisect.bisect_right(rows, input.numel() // weight.shape[1])]:
                return original(self, input)
            bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401  self.bias is slow
            return _masked_linear(input, weight, bias, *plan, "auto", None, [])

        own = {"forward": types.MethodType(forward, module)}
        if hasattr(type(module), "set_mask"):
            own["set_mask"] = types.MethodType(_setting_mask(state), module)
        return own


def _masked_linear(*arguments: Any) -> Tensor:
    """functional.call, without its conditions, which were checked."""
    entry_point = _library.entry_point("masked_linear")
    return functional.call("masked_linear", *arguments) if entry_point is None else entry_point(*arguments)


def _setting_mask(state: _LayerState) -> Callable[..., Any]:
    """``set_mask`` writes through ``mask.data``, which counts no change of the mask, so the plan is dropped here."""

    def set_mask(self: Any, *arguments: Any, **named: Any) -> Any:
        state.forget()
        return type(self).set_mask(self, *arguments, **named)

    return set_mask


class _LayerState:
    """The plan of the mask that a layer has, and the choices for the dtype, device and threads that it runs with.

    Attributes:
        forward_only: the batch sizes at which the choice changes, and the choices between them: whether ours runs.
        training: the same where a graph is recorded.
    """

    forward_only: tuple[tuple[int, ...], tuple[bool, ...]]
    training: tuple[tuple[int, ...], tuple[bool, ...]]

    def __init__(self, module: Any, always: bool) -> None:
        self._always = always
        self._dtype: torch.dtype | None = None
        self._device: torch.device | None = None
        self._threads = 0
        self.forget()

    def forget(self) -> None:
        self._mask: Tensor | None = None
        self._version: int | None = None
        self._plan: tuple[Tensor | None, ...] | None = None

    def plan(self, module: Any, weight: Tensor) -> tuple[Tensor | None, ...] | None:
        """The mask's plan as the op takes it; None where the original must run."""
        mask = module._buffers.get("mask")
        if mask is None:
            mask = module.mask
        moved = weight.dtype is not self._dtype or weight.device != self._device
        if mask is not self._mask or version_of(mask) != self._version or moved:
            self._mask, self._version = mask, version_of(mask)
            # A mask of another float dtype would decide the output's dtype, or be an error.
            fits = mask.device == weight.device and (not mask.is_floating_point() or mask.dtype == weight.dtype)
            self._plan = _plan_of(module) if fits and weight.dtype in _DTYPES and weight.numel() else None
        if (moved or torch.get_num_threads() != self._threads) and self._plan is not None:
            if weight.is_cuda and torch.cuda.is_current_stream_capturing():
                self.forget()
                return None
            self._dtype, self._device, self._threads = weight.dtype, weight.device, torch.get_num_threads()
            if self._always:
                self.forward_only = self.training = (), (True,)
            else:
                self.forward_only, self.training = (own.choices for own in crossovers_of(module))
        return self._plan


def _plan_of(module: Any) -> tuple[Tensor | None, ...] | None:
    mask = module.mask
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        return None
    with building():
        return Mask.from_dense(dense_mask(module)).plan


def crossovers_of(module: Any) -> tuple[Crossover, Crossover]:
    """(forward pass, training step), measured once for layers of the same sizes, masks as dense, dtype, device and
    number of threads."""
    weight, mask = module.weight, module.mask
    seen, sorted_rows = int((mask != 0).sum()), _is_staircase(module)
    own = type(module), tuple(weight.shape), seen, sorted_rows, module.bias is None
    key = *own, weight.dtype, weight.device, torch.get_num_threads()
    if key not in _measured:
        with building():
            _measured[key] = _measure(module)
    return _measured[key]


def _is_staircase(module: Any) -> bool:
    mask = Mask.from_dense(dense_mask(module))
    return mask.extents is not None and mask.rows is None and mask.columns is None


def _measure(module: Any) -> tuple[Crossover, Crossover]:
    # A stand-in with parameters of its own: the gradients of the real ones may have hooks.
    stand_in: Any = shallow(module)
    stand_in._parameters = {
        name: None if parameter is None else nn.Parameter(parameter.detach().clone())
        for name, parameter in module._parameters.items()
    }
    if "weight" not in stand_in._parameters:
        stand_in.__dict__["weight"] = module.weight.detach().clone().requires_grad_()
    weight = stand_in.weight
    ours, original = LayerPlan().attributes(stand_in)["forward"].__func__, type(module).forward

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
                    # A sum, since torch imports half a second of modules where it is given a gradient to begin with.
                    return torch.autograd.grad((path(stand_in, x) * upstream).sum(), inputs, allow_unused=True)

            return step

        return of

    forward, training = (
        measured(calls(original, training), calls(ours, training), weight.device) for training in (False, True)
    )
    return forward, training


def read_layer(name: str, module: Any) -> tuple[LayerPlan | None, Part]:
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
    speed = f"speed-up of the forward pass: {forward_only}; of a training step: {training}"
    by = f"ar_fast masked_linear ({speed})"
    plan: LayerPlan | None = LayerPlan(crossovers)
    if forward_only.never and training.never:
        by = f"its own path, since ar_fast's would save too little ({speed})"
        plan = None
    return plan, Part(name, type(module).__name__, "plain", "forward", by, deviation)


def _deviation(layer: Any) -> float:
    x = random(layer.weight, 3, layer.weight.shape[1])
    with torch.no_grad(), trying("its forward"):
        expected = type(layer).forward(layer, x)
        found = functional.masked_linear(x, layer.weight, Mask(*layer.weight.shape, *_plan_of(layer)), layer.bias)
    return close(found, expected, "its output")
