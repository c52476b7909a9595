"""The gradient of an inverse: one forward pass, one backward pass, and a sweep over the levels between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .. import functional
from .conditioner import Add, AddContext, Elementwise, GateByContext, Masked
from .stepping import Incremental, Prepared, Rows, Univariate

__all__ = ["Invertible", "gradients", "graph_needed", "inverted"]


class Invertible(Protocol):
    """An autoregressive transform whose inverse is computed without a graph."""

    @property
    def steps(self) -> Incremental:
        """Its conditioner."""

    def without_graph(
        self, y: Tensor, context: Rows | None, tensors: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """y (B, D) -> x (B, D), and log|dx/dy| (B) where it comes with it."""

    def univariate_at(self, x: Tensor) -> Univariate:
        """An inverse of the univariate transforms that is differentiable where its results are x (B, D)."""


def graph_needed(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def inverted(own: Invertible, y: Tensor, context: Rows | None, tensors: Sequence[Tensor | None]) -> Tensor:
    """The inverse of a transform, whose backward pass computes its gradient from the result alone.

    Args:
        own: the transform.
        y: (B, D).
        context: the distinct contexts, and which of them each row has.
        tensors: the conditioner's, in the order of its steps.

    Returns:
        x (B, D).
    """
    values, index = (None, None) if context is None else context
    return _Inverse.apply(own, index, y, values, *tensors)


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, own: Invertible, index: Tensor | None, y: Tensor, context: Tensor | None, *tensors: Tensor | None
    ) -> Tensor:
        ctx.own, ctx.index, ctx.schedule = own, index, own.steps.settle()
        x = own.without_graph(y, None if context is None else Rows(context, index), tensors)[0]
        ctx.save_for_backward(x, y, context, *tensors)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.own.steps.settle() is not ctx.schedule:
            raise RuntimeError("the masks of a flow must stay as they are until the backward pass")
        x, *saved = ctx.saved_tensors
        inputs = [
            None if tensor is None else tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(saved, ctx.needs_input_grad[2:], strict=True)
        ]
        y, context, *tensors = inputs
        wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
        rows = None if context is None else Rows(context, ctx.index)
        found = iter(gradients(ctx.own.steps, ctx.own.univariate_at(x), x, grad, y, rows, tensors, wanted))
        return None, None, *(next(found) if t is not None and t.requires_grad else None for t in inputs)


def gradients(
    steps: Incremental,
    univariate: Univariate,
    x: Tensor,
    grad: Tensor,
    y: Tensor,
    context: Rows | None,
    tensors: Sequence[Tensor | None],
    wanted: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """The gradients of an inverse x of y, given that with respect to x, for those of its inputs that are wanted.

    x_i is a function of y_i and of the parameters that the network computes from the x before it. Once x is known, all
    its derivatives are taken at once; the sweep, from the last level to the first, then finds the adjoint of each x_i,
    and the adjoint of each unit once. With x held fixed, an ordinary backward pass does the rest.

    Args:
        steps: the conditioner.
        univariate: the inverse of the univariate transforms.
        x: (B, D).
        grad: (B, D), with respect to x.
        y: (B, D).
        context: the distinct contexts, and which of them each row has.
        tensors: the network's, as ``steps.tensors`` lists them.
        wanted: those of y, the contexts and the tensors whose gradients are needed.
    """
    variables, back = steps.by_level(y.device)
    count = steps.conditioner.parameters
    with torch.enable_grad():
        prepared = steps.prepare(tensors, context)
        outputs, slopes = _forward(steps, prepared, x.detach().index_select(1, variables))
        parameters = outputs.unflatten(1, (len(variables), count)).index_select(1, back)
        if not parameters.requires_grad:
            parameters.requires_grad_()
        again = univariate(y, parameters, torch.arange(len(variables), device=y.device))
        of_parameters = torch.autograd.grad(again.sum(), parameters, retain_graph=True)[0]
    with torch.no_grad():
        factors = of_parameters.index_select(1, variables).flatten(1)
        own = grad.index_select(1, variables)
        adjoint = functional.call("inverse_adjoint", own, factors, *_network(steps, prepared, slopes))
        weights = adjoint.index_select(1, back)
    # A sum, since torch imports its symbolic shapes, half a second, where it is given a gradient to begin with.
    with torch.enable_grad():
        total = (again * weights).sum()
    return torch.autograd.grad(total, wanted, allow_unused=True)


def _forward(steps: Incremental, prepared: Sequence[Prepared], x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """The outputs for all x at once, in the schedule's order, and the derivative of each function at its input."""
    values, slopes = [x], {}
    for index, (step, given) in enumerate(zip(steps.conditioner.steps, prepared, strict=True)):
        below = values[step.source]
        if isinstance(step, Masked):
            value = F.linear(below, given.weight, given.bias)
            value = value if given.context is None else value + given.context.of(slice(None))
        elif isinstance(step, Elementwise):
            function = steps.function(step.function)
            slopes[index] = _slope(function, below.detach())
            value = function(below)
        elif isinstance(step, Add):
            value = below + values[step.other]
        elif isinstance(step, AddContext):
            value = below + given.context.of(slice(None))
        elif isinstance(step, GateByContext):
            slopes[index] = given.context.of(slice(None)).detach().expand(len(x), -1)
            value = below * given.context.of(slice(None))
        else:
            slopes[index] = given.weight.detach().expand(len(x), -1)
            value = torch.addcmul(given.bias, below, given.weight)
        values.append(value)
    return values[-1], slopes


def _slope(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The derivative of an elementwise function. A call of autograd takes longer than what it computes for a few rows,
    so those that the libraries have by default are written out."""
    if function in (torch.relu, F.relu) or type(function) is nn.ReLU:
        return (x > 0).to(x.dtype)
    if function in (torch.tanh, F.tanh) or type(function) is nn.Tanh:
        return 1 - torch.tanh(x).square()
    at = x.clone().requires_grad_()
    # A copy, since the function may work in place.
    return torch.autograd.grad(function(at.clone()).sum(), at)[0]


def _network(steps: Incremental, prepared: Sequence[Prepared], slopes: dict[int, Tensor]) -> tuple[list[Any], ...]:
    """The network as ``inverse_adjoint`` takes it: weights, slopes, program, ends."""
    schedule = steps.settle()
    # Units that no variable sees stand behind the others, at no level; the op has all variables.
    units = [None, *(order.ends[schedule.levels] for order in schedule.order[1:])]
    weights, program = [], []
    for index, step in enumerate(steps.conditioner.steps):
        masked = isinstance(step, Masked)
        if masked:
            weights.append(prepared[index].weight[: units[index + 1], : units[step.source]])
        program += [step.source, step.other if isinstance(step, Add) else -1, int(masked), int(index in slopes)]
    own = [slope[:, : units[index + 1]] for index, slope in slopes.items()]
    ends = [end for order in schedule.order for end in order.ends[: schedule.levels + 1]]
    return weights, own, program, ends
