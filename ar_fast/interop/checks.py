"""Copies of modules on which the reading of a module is checked, and what counts as equal."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..conditioners.conditioner import Elementwise, Unsuitable
from ..conditioners.stepping import Incremental, distinct_rows
from .attaching import detach

__all__ = ["check_parameters", "close", "probe", "random", "randomized", "trying", "uniform"]

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called",
)  # fmt: skip


def probe(module: nn.Module) -> nn.Module:
    """A copy without hooks and without acceleration, in evaluation mode: what is tried on it leaves no trace.

    Raises:
        Unsuitable: if the module cannot be copied.
    """
    # Tensors with a graph, such as a cached result, cannot be copied.
    cached = (value for part in module.modules() for own in part.__dict__.values() for value in _each(own))
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in cached if tensor.grad_fn is not None}
    # Empty dictionaries of hooks, a dozen in each module, would take most of the time.
    for part in module.modules():
        memo |= {id(own): OrderedDict() for own in part.__dict__.values() if type(own) is OrderedDict and not own}
    try:
        other = copy.deepcopy(module, memo)
    except Exception as error:
        raise Unsuitable(f"it cannot be copied: {error}") from error
    for part in other.modules():
        detach(part)
        for name in _HOOKS:
            getattr(part, name, {}).clear()
    return other.eval().requires_grad_(False)


def _each(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for own in value:
            yield from _each(own)


def randomized(module: nn.Module) -> nn.Module:
    """The same copy in float64 with random parameters, so that each of them shows in the output."""
    generator = torch.Generator().manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.5 if parameter.dim() < 2 else 1 / math.sqrt(max(1, parameter.shape[-1]))
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for part in module.modules():
            if isinstance(part, _BatchNorm) and part.running_mean is not None:
                part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator))
                part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=generator))
    return module


def random(like: Tensor, *shape: int) -> Tensor:
    """Normal numbers that do not move torch's own generator, in the dtype and on the device of a tensor."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like.device, like.dtype)


def uniform(like: Tensor, *shape: int) -> Tensor:
    """Numbers between 0.02 and 0.98 in the same way."""
    generator = torch.Generator().manual_seed(1)
    return (0.02 + 0.96 * torch.rand(shape, generator=generator, dtype=torch.float64)).to(like.device, like.dtype)


def close(found: Tensor, expected: Tensor, what: str) -> float:
    """The largest difference, relative to the largest expected value.

    Raises:
        Unsuitable: if it is more than rounding.
    """
    if found.shape != expected.shape:
        raise Unsuitable(f"{what} has shape {tuple(expected.shape)}, and {tuple(found.shape)} as it was read")
    if not expected.numel():
        return 0.0
    scale = float(expected.abs().amax())
    deviation = float((found - expected).abs().amax()) / (scale or 1.0)
    # Relative to the largest value, so many ulps may be lost in long sums. A misreading is far above it, since it is
    # looked for in float64 with random parameters.
    allowed = 0.05 if expected.dtype in (torch.float16, torch.bfloat16) else 2e3 * torch.finfo(expected.dtype).eps
    if not deviation <= allowed:
        raise Unsuitable(f"{what} differs by {deviation:.2g} from what was read")
    return deviation


def check_parameters(
    steps: Incremental, network: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, context: Tensor | None
) -> float:
    """Compares the parameters computed one variable at a time with the network's own, (B, outputs) as stored.

    Returns the largest relative difference; raises Unsuitable if it is more than rounding.
    """
    own = steps.conditioner
    uses = own.uses()
    for step in own.steps:
        if isinstance(step, Elementwise) and uses[step.source] > 1:
            values = random(x, 8)
            before = values.clone()
            steps.function(step.function)(values)
            if not torch.equal(values, before):
                raise Unsuitable(f"{step.function} works in place on a value that is used again")
    with torch.no_grad():
        order = own.owners().argsort(stable=True).to(x.device)
        expected = network(x, context).reshape(len(x), -1).index_select(1, order)
        rows = None if context is None else distinct_rows(context)
        _, found = steps.invert(x, lambda y, parameters, variables: y, rows)
    return close(found, expected.unflatten(1, (own.variables, own.parameters)), "its output")


@contextlib.contextmanager
def trying(what: str) -> Iterator[None]:
    """Any error that trying a module raises becomes the reason for which it is left."""
    try:
        yield
    except Unsuitable:
        raise
    except Exception as error:
        raise Unsuitable(f"{what} raises {type(error).__name__}: {error}") from error
