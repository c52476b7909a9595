"""The inverse of an autoregressive transform: in which of three ways it runs, and when the original does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..conditioners.conditioner import Conditioner, Unsuitable
from ..conditioners.implicit import graph_needed, inverted
from ..conditioners.stepping import Incremental, Rows, Univariate
from .checks import close, random
from .crossover import Crossover, measured
from .fused import Fused
from .masked_layers import plain_call

__all__ = [
    "Inverse",
    "Passes",
    "acting",
    "agree",
    "check_inverse",
    "crossovers",
    "everywhere",
    "global_hooks",
    "graph_needed",
    "hooks_of",
]


@dataclass
class Inverse:
    """The inverse of one transform object, by its conditioner.

    Attributes:
        steps: the conditioner, one variable at a time.
        univariate: the library's own inverse of a variable's transform.
        parametric: whether the univariate transform has parameters of its own, which then need gradients.
        crossovers: where this is faster than the library's passes, without and with gradients.
        fused: the same in one call of an op, where the op knows the conditioner and the univariate transform.
        passes: how many passes the original makes; None is enough of them.
    """

    steps: Incremental
    univariate: Univariate
    parametric: bool = False
    crossovers: tuple[Crossover, Crossover] | None = None
    fused: Fused | None = None
    passes: Callable[[], int | None] = lambda: None

    def __post_init__(self) -> None:
        self._hooks = hooks_of(self.steps.network)

    def usable(self, y: Tensor, context: Tensor | None = None) -> list[Tensor | None] | None:
        """The network's tensors, if this inverse can stand in for the library's passes in this call; or None."""
        own, steps = self.steps.conditioner, self.steps
        rows = y.numel() // max(1, own.variables)
        if not plain_call() or rows == 0:
            return None
        if torch.is_autocast_enabled(y.device.type):
            return None
        if global_hooks() or any(self._hooks) or not steps.unchanged() or acting(steps.inactive()):
            return None
        if y.shape[-1] != own.variables or (context is None) != (own.context_features == 0):
            return None
        if context is not None and context.shape[-1] != own.context_features:
            return None
        tensors, dtype, device = steps.tensors(), y.dtype, y.device
        for tensor in (*tensors, context):
            if tensor is not None and (tensor.dtype is not dtype or tensor.device != device):
                return None
        if self.crossovers is not None and not self.crossovers[graph_needed(y, context, *tensors)].ours(rows):
            return None
        try:
            schedule = steps.settle()
        except Unsuitable:
            return None
        passes, domain = self.passes(), None if self.fused is None else self.fused.head.domain
        if passes is not None and passes < schedule.levels:
            return None
        return tensors if domain is None or bool(((y >= domain[0]) & (y <= domain[1])).all()) else None

    def __call__(
        self, y: Tensor, context: Rows | None = None, tensors: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """y (B, D) and the distinct contexts -> x (B, D), differentiable, and log|dx/dy| (B) where it comes with it.
        ``tensors`` are what ``usable`` returned."""
        tensors = self.steps.tensors() if tensors is None else tensors
        values = None if context is None else context.values
        if not graph_needed(y, values, *tensors):
            return self.without_graph(y, context, tensors)
        if self.parametric:
            return self.steps.invert(y, self.univariate, context, tensors)[0], None
        return inverted(self, y, context, tensors), None

    def univariate_at(self, x: Tensor) -> Univariate:
        return self.univariate

    def without_graph(
        self, y: Tensor, context: Rows | None, tensors: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        found = None if self.fused is None else self.fused(y, context, tensors)
        return found or (self.steps.invert(y, self.univariate, context, tensors)[0], None)


def global_hooks() -> bool:
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def hooks_of(network: nn.Module) -> list[dict[int, Any]]:
    """The hooks that calls of a network's modules run: dictionaries, which are empty where there is none."""
    names = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    return [getattr(part, name) for part in network.modules() for name in names]


def acting(parts: Any) -> bool:
    """Whether a dropout drops, or a batch normalisation reads its batch."""
    return any(part.training and getattr(part, "p", 1) > 0 for part in parts)


class Passes:
    """The library's own passes, which end where two agree: what runs if an inverse cannot be incremental.

    The first call makes all passes of the original too. Where its result is another one, they run from then on.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._right: bool | None = None

    def __call__(
        self,
        short: Callable[[], tuple[Tensor, ...]],
        original: Callable[[], tuple[Tensor, ...]],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """What ``short`` gives, or ``original`` where it must run; ``tensors`` are what the call was given."""
        if self._right is False or not _may_stop(self.network, *tensors):
            return original()
        found = short()
        if self._right is None:
            expected = original()
            self._right = all(agree(own, other) for own, other in zip(found, expected, strict=True))
            return expected
        return found


def _may_stop(network: nn.Module, *tensors: Tensor | None) -> bool:
    """Whether nothing random or counting acts in the passes, no graph is recorded, whose gradient may change in passes
    that leave the values alone, and the values can be compared."""
    parts = list(network.modules())
    return (
        plain_call()
        and not (global_hooks() or any(hooks_of(network)))
        and not acting(part for part in parts if isinstance(part, _DropoutNd | _BatchNorm | nn.RReLU))
        and not graph_needed(*tensors, *network.parameters())
        and not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    )


def agree(first: Tensor, second: Tensor) -> bool:
    """Bit for bit, so that a further pass computes the same again. Zeros of different signs do not agree."""
    return torch.equal(first, second) and torch.equal(first.signbit(), second.signbit())


def everywhere(univariate: Callable[[Tensor, Tensor], Tensor], variables: int) -> Univariate:
    """A univariate inverse that only takes all variables at once, as one that takes some of them: the parameters of
    the others are zeros, and what they give is not used."""

    def some(y: Tensor, parameters: Tensor, indices: Tensor) -> Tensor:
        all_y = y.new_zeros(len(y), variables).index_copy(1, indices, y)
        shape = len(y), variables, parameters.shape[2]
        all_parameters = parameters.new_zeros(shape).index_copy(1, indices, parameters)
        return univariate(all_y, all_parameters).index_select(1, indices)

    return some


def check_inverse(
    ours: Callable[[Tensor, Tensor | None], Tensor],
    one_pass: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    original: Callable[[Tensor, Tensor | None], Tensor],
    conditioner: Conditioner,
    y: Tensor,
    all_passes: bool,
) -> float:
    """Compares an inverse with the original's: all its passes, or one pass from our result, which must give that
    result again.

    Args:
        ours: (y, context) -> x.
        one_pass: (x, y, context) -> x, one pass of the original.
        original: (y, context) -> x, all its passes.
        y: (B, D).
        all_passes: False makes one pass only.

    Raises:
        Unsuitable: if they differ by more than rounding.
    """
    context = random(y, len(y), conditioner.context_features) if conditioner.context_features else None
    with torch.no_grad():
        found = ours(y, context)
        again = original(y, context) if all_passes else one_pass(found, y, context)
    return close(found, again, "its inverse")


#: Crossovers of inverses, without and with their gradients, by what decides them.
_measured: dict[tuple[Any, ...], tuple[Crossover, Crossover]] = {}


def crossovers(
    kind: tuple[Any, ...],
    ours: Callable[[Tensor, Tensor | None], Tensor],
    original: Callable[[Tensor, Tensor | None], Tensor],
    conditioner: Conditioner,
    draw: Callable[[int], Tensor],
    parameters: Sequence[Tensor],
) -> tuple[Crossover, Crossover]:
    """Where our inverse is faster, and where it is together with its gradients.

    What the passes repeat grows with the batch, so where ours is faster for one row by half no larger batch is tried.
    It is measured once for transforms of the same ``kind`` and structure.
    """
    like = draw(1)
    key = kind, conditioner, like.dtype, like.device, torch.get_num_threads()
    if key not in _measured:
        forward, training = (
            _crossover(ours, original, conditioner, draw, parameters if training else ()) for training in (False, True)
        )
        _measured[key] = forward, training
    return _measured[key]


def _crossover(
    ours: Callable[[Tensor, Tensor | None], Tensor],
    original: Callable[[Tensor, Tensor | None], Tensor],
    conditioner: Conditioner,
    draw: Callable[[int], Tensor],
    parameters: Sequence[Tensor],
) -> Crossover:
    def call(path: Callable[[Tensor, Tensor | None], Tensor]) -> Callable[[int], Callable[[], object]]:
        def of(rows: int) -> Callable[[], object]:
            y = draw(rows)
            context = random(y, rows, conditioner.context_features) if conditioner.context_features else None

            def step() -> object:
                with torch.set_grad_enabled(bool(parameters)):
                    x = path(y, context)
                    return torch.autograd.grad(x.sum(), parameters, allow_unused=True) if parameters else x

            return step

        return of

    device = draw(1).device
    single = measured(call(original), call(ours), device, rows=(1,), seconds=3e-3)
    if single.ratios[0] >= 1.5:
        return single
    return measured(call(original), call(ours), device, rows=(1, 16, 128), seconds=3e-3, longest=0.05)
