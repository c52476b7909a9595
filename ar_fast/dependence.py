"""Whether a module is autoregressive: which of its outputs depend on which of its inputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import heads, orderings
from .models import AutoregressiveModel, _inputs

__all__ = ["Dependence", "check_autoregressive"]

# Rows of one forward pass of the perturbation test, which perturbs several inputs in one pass.
_ROWS = 256


@dataclass(frozen=True)
class Dependence:
    """Which outputs of a module depend on which inputs: the result of :func:`check_autoregressive`.

    It is true if no output depends on an input that it must not see. Printing it names the pairs that do.

    Attributes:
        event_shape: shape of one event.
        allowed: (D, D) bool, whether output i may see input j.
        gradient: (D, D), the largest derivative of variable i's output with respect to input j, NaN if one is NaN. If
            a variable has several outputs, it is the derivative of a sum of them with different weights. None if the
            module has no gradient with respect to its inputs.
        change: (D, D), the largest change of an output of variable i when only input j changes, infinite if the output
            becomes NaN.
        tolerance: sizes up to this do not count as a dependence.
        context: (D), the largest derivative of variable i's output with respect to the context or its largest change
            when the context changes, whichever is larger, NaN if one is NaN; None if no floating context was given.
    """

    event_shape: torch.Size
    allowed: Tensor
    gradient: Tensor | None
    change: Tensor
    tolerance: float
    context: Tensor | None = None

    @property
    def found(self) -> Tensor:
        """(D, D) bool: whether output i depends on input j, by gradient or perturbation; a NaN gradient counts."""
        found = self.change > self.tolerance
        return found if self.gradient is None else found | ~(self.gradient <= self.tolerance)

    @property
    def violations(self) -> list[tuple[int, int]]:
        """The pairs (i, j) of flat indices where output i depends on input j although it must not."""
        return [tuple(pair) for pair in (self.found & ~self.allowed).nonzero().tolist()]

    @property
    def missing(self) -> list[tuple[int, int]]:
        """The pairs (i, j) where output i may depend on input j, but no dependence was found."""
        return [tuple(pair) for pair in (self.allowed & ~self.found).nonzero().tolist()]

    @property
    def without_context(self) -> list[int]:
        """The flat indices i whose outputs were not found to depend on the context; empty if no context was given."""
        if self.context is None:
            return []
        return (self.context <= self.tolerance).nonzero()[:, 0].tolist()

    def __bool__(self) -> bool:
        return not self.violations

    def __str__(self) -> str:
        violations, blind = self.violations, self.without_context
        if violations:
            text = f"not autoregressive: {_first_five([self._describe(i, j) for i, j in violations])}"
        else:
            text = f"autoregressive: no output depends on an input that it must not see, {len(self.missing)} missing"
        if blind:
            text += f"; the context is not seen by {_first_five([f'output {self._place(i)}' for i in blind])}"
        return text

    def _place(self, index: int) -> str:
        place = tuple(int(k) for k in torch.unravel_index(torch.tensor(index), self.event_shape))
        return str(place[0] if len(place) == 1 else place)

    def _describe(self, i: int, j: int) -> str:
        names = [self._place(index) for index in (i, j)]
        sizes = f"change {self.change[i, j]:.3g}"
        if self.gradient is not None:
            sizes = f"gradient {self.gradient[i, j]:.3g}, {sizes}"
        return f"output {names[0]} depends on input {names[1]} ({sizes})"


def _first_five(parts: list[str]) -> str:
    more = f"; and {len(parts) - 5} more" if len(parts) > 5 else ""
    return "; ".join(parts[:5]) + more


def check_autoregressive(
    module: nn.Module | Callable[..., Any],
    event_shape: int | Sequence[int],
    *,
    order: Tensor | Sequence[int] | None = None,
    strict: bool = True,
    x: Tensor | None = None,
    context: Tensor | None = None,
    outputs: Tensor | None = None,
    tolerance: float = 0.0,
    raises: bool = False,
) -> Dependence:
    """Tells whether any output of a module depends on an input that it must not see, and which; with a context, also
    which outputs do not see the context.

    It tests in two ways, since each misses what the other finds: by the derivative of each output with respect to each
    input, and by the change of each output when one input takes another value. Any module will do: a network, a flow's
    conditioner or transform, a model of ar_fast. The module is in evaluation mode during the test.

    Args:
        module: takes (N, \\*event_shape) and returns a tensor, or a tuple, list or dictionary of tensors, of shape
            (N, \\*event_shape, ...), (N, D, ...), (N, ..., \\*event_shape), (N, ..., D), or (N, K D), where the K
            outputs of a variable lie side by side.
        event_shape: shape of one event, an int or several; D is the product.
        order: (D) integers, order[p] = flat index of the variable at position p. None takes the order of an ar_fast
            model, else 0 ... D-1.
        strict: output i must not see input i itself, as in a conditioner; False allows it, as in a flow's transform.
        x: (N, \\*event_shape), two or more inputs: derivatives are taken there, and an input is changed to the value
            that it has in another row. None draws values that suit the head of an ar_fast model, else normal ones.
        context: of one event. If given, the module is called with it, repeated for every row, as its second argument.
            If it is floating, ``without_context`` of the result lists the outputs that do not see it; they are not
            violations.
        outputs: which variable each output belongs to, in an output's shape without N. It is needed if the shapes above
            do not say it, for example if an output of shape (N, K D) has the variables side by side.
        tolerance: sizes of derivatives and changes up to this do not count. Masked weights have no effect at all, so 0
            is right for them; convolutions by Fourier or Winograd transforms leave rounding errors.
        raises: raise an error if an output depends on an input that it must not see.

    Returns:
        A :class:`Dependence`: true if nothing is wrong, with the pairs in ``violations`` and ``missing``, and the
        outputs that do not see the context in ``without_context``.

    Raises:
        ValueError: if the shapes do not fit, or the outputs are not finite or differ from call to call; under
            ``raises`` also for violations, naming the pairs.

    Example:
        >>> from ar_fast.models import MADE
        >>> bool(check_autoregressive(MADE(3, [8]), 3))
        True
        >>> print(check_autoregressive(lambda x: x.flip(1), 2))
        not autoregressive: output 0 depends on input 1 (gradient 1, change 12.6)
        >>> bool(check_autoregressive(lambda x: x.cumsum(1), (2,), strict=False))
        True
    """
    shape = _inputs.event_shape("check_autoregressive", event_shape)
    order = _order(module, order, math.prod(shape))
    x = _drawn_inputs(module, shape) if x is None else x
    if x.dim() != 1 + len(shape) or x.shape[1:] != shape or x.shape[0] < 2:
        raise ValueError(
            f"check_autoregressive: x must have shape (N, {', '.join(map(str, shape))}) with N >= 2, "
            f"got {tuple(x.shape)}"
        )
    with _evaluation(module):
        call = _Call(module, shape, context, outputs)
        gradient = _gradient(call, x.detach())
        with torch.no_grad():
            change = _change(call, x.detach())
        seen = _context(call, x.detach())
    position = order.argsort()
    allowed = position[None, :] < position[:, None] if strict else position[None, :] <= position[:, None]
    result = Dependence(shape, allowed, gradient, change, tolerance, seen)
    if raises and not result:
        raise ValueError(f"check_autoregressive: {result}")
    return result


def _order(module: object, order: Tensor | Sequence[int] | None, variables: int) -> Tensor:
    if order is None and isinstance(module, AutoregressiveModel):
        order = module.order
    return torch.arange(variables) if order is None else orderings.check(order, variables).cpu()


def _drawn_inputs(module: object, shape: torch.Size) -> Tensor:
    """Four events: two near zero, one further out and one far out; or values that the model's head supports."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 1.0, 3.0, 10.0]).reshape(-1, *[1] * len(shape))
    x = scales * torch.randn(4, *shape, generator=generator)
    device, dtype = _placement(module)
    if isinstance(module, AutoregressiveModel):
        x = _values(module.head, x, generator)
    return x.to(device, dtype if x.is_floating_point() else None)


def _values(head: heads.Head, x: Tensor, generator: torch.Generator) -> Tensor:
    """Values of the head: each of the four rows has a different one, if there are that many."""
    sizes = head.sizes(x[0].numel())
    rank = torch.stack([torch.randperm(4, generator=generator) for _ in sizes], 1)
    columns = [
        real if size is None else rank[:, i] * max(1, size // 4) % size
        for i, (real, size) in enumerate(zip(x.flatten(1).T, sizes, strict=True))
    ]
    return torch.stack(columns, 1).reshape(x.shape)


def _placement(module: object) -> tuple[torch.device, torch.dtype]:
    if isinstance(module, AutoregressiveModel):
        return module.device, module.compute_dtype
    if isinstance(module, nn.Module):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return torch.get_default_device(), torch.get_default_dtype()


@contextlib.contextmanager
def _evaluation(module: object) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()} if isinstance(module, nn.Module) else {}
    for part in modes:
        part.training = False
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


class _Call:
    """The module as a function from inputs to outputs (N, O), and the variable that each of the O belongs to."""

    def __init__(self, module: Any, shape: torch.Size, context: Tensor | None, outputs: Tensor | None) -> None:
        self.module, self.shape, self.context, self.outputs = module, shape, context, outputs
        self.variables = math.prod(shape)
        self.owners = torch.empty(0, dtype=torch.int64)

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``context`` (N, ...) replaces the given context, which is repeated for every row."""
        if context is None and self.context is not None:
            context = self.context.expand(x.shape[0], *self.context.shape)
        arguments = (x,) if context is None else (x, context)
        tensors = list(_tensors(self.module(*arguments)))
        for tensor in tensors:
            if tensor.dim() == 0 or tensor.shape[0] != x.shape[0]:
                rows = x.shape[0]
                raise ValueError(
                    f"check_autoregressive: outputs must have as many rows as x, {rows}, got {tuple(tensor.shape)}"
                )
        self.owners = torch.cat([self._owners_of(tensor.shape[1:]) for tensor in tensors])
        return torch.cat([tensor.flatten(1) for tensor in tensors], 1)

    def _owners_of(self, shape: torch.Size) -> Tensor:
        """Which variable each element of an output belongs to, flattened."""
        event, dims = self.shape, len(self.shape)
        index = torch.arange(self.variables)
        if self.outputs is not None:
            if self.outputs.shape != shape:
                raise ValueError(
                    f"check_autoregressive: outputs must have the shape of an output, {tuple(shape)}, "
                    f"got {tuple(self.outputs.shape)}"
                )
            return self.outputs.flatten().cpu()
        if isinstance(self.module, AutoregressiveModel) and isinstance(self.module.counts, list):
            return index.repeat_interleave(torch.tensor(self.module.counts))
        if shape[:dims] == event:
            return index.reshape(event + (1,) * (len(shape) - dims)).expand(shape).flatten()
        if shape[:1] == (self.variables,):
            return index.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).flatten()
        if shape[-dims:] == event:
            return index.reshape(event).expand(shape).flatten()
        if shape[-1:] == (self.variables,):
            return index.expand(shape).flatten()
        if len(shape) == 1 and shape[0] > 0 and shape[0] % self.variables == 0:
            return index.repeat_interleave(shape[0] // self.variables)
        raise ValueError(
            f"check_autoregressive: an output must hold some numbers for each of {self.variables} variables, "
            f"got {tuple(shape)} for an event of shape {tuple(event)}; outputs says which variable each belongs to"
        )


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)
    else:
        raise ValueError(f"check_autoregressive: module must return tensors, got {type(output).__name__}")


def _largest_by_owner(sizes: Tensor, owners: Tensor, variables: int) -> Tensor:
    """(..., O) -> (..., D), the largest size for each variable; NaN if one is NaN."""
    largest = sizes.new_zeros(*sizes.shape[:-1], variables)
    return largest.scatter_reduce_(-1, owners.to(sizes.device).expand(sizes.shape), sizes, "amax")


def _gradient(call: _Call, x: Tensor) -> Tensor | None:
    """(D, D), a row at a time: the largest derivative of a variable's outputs, weighted so that none cancel."""
    if not x.is_floating_point():
        return None
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        outputs = call(x)
    if not outputs.requires_grad:
        return None
    return torch.stack([row.flatten(1).amax(0) for row in _gradients_by(call, outputs, x)])


def _gradients_by(call: _Call, outputs: Tensor, leaf: Tensor) -> Iterator[Tensor]:
    """For each variable, the absolute derivatives of a weighted sum of its outputs, in leaf's shape."""
    for i in range(call.variables):
        own = (call.owners == i).nonzero()[:, 0].to(outputs.device)
        weights = 1 + torch.arange(len(own), device=own.device) * 0.6180339887 % 1
        combined = (outputs[:, own] * weights).sum()
        (sizes,) = torch.autograd.grad(combined, leaf, retain_graph=True, allow_unused=True)
        yield torch.zeros(leaf.shape) if sizes is None else sizes.detach().abs().float().cpu()


def _context(call: _Call, x: Tensor) -> Tensor | None:
    """(D), how much the outputs of each variable depend on the context, by gradient or when all of it changes."""
    if call.context is None or not call.context.is_floating_point() or call.context.numel() == 0:
        return None
    rows = call.context.detach().expand(x.shape[0], *call.context.shape).clone().requires_grad_()
    with torch.enable_grad():
        outputs = call(x, rows)
    sizes = torch.zeros(call.variables)
    if outputs.requires_grad:
        sizes = torch.stack([own.amax() for own in _gradients_by(call, outputs, rows)])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        unchanged = call(x, rows)
        for scale in (1.0, 10.0):
            moved = rows + scale * torch.randn(rows.shape, generator=generator).to(rows)
            change = (call(x, moved) - unchanged).abs().nan_to_num(nan=math.inf).amax(0)
            sizes = torch.maximum(sizes, _largest_by_owner(change, call.owners, call.variables).float().cpu())
    return sizes


def _change(call: _Call, x: Tensor) -> Tensor:
    """(D, D), a column at a time: an event takes the value that another event has for one input, for all such pairs.

    A row is compared with the row at the same index of a batch of the same size, so that rounding is the same.
    """
    events, variables = x.shape[0], call.variables
    rows = x.flatten(1)
    moves = [(first, second) for first in range(events) for second in range(events) if first != second]
    base_index, value_index = torch.tensor(moves, device=x.device).T
    together = max(1, min(variables, _ROWS // len(moves)))
    bases = rows[base_index].repeat(together, 1)
    unchanged, again = call(bases.reshape(-1, *call.shape)), call(bases.reshape(-1, *call.shape))
    if not bool(unchanged.isfinite().all()):
        raise ValueError(
            "check_autoregressive: outputs must be finite, got some that are not; give an x where they are"
        )
    if not torch.equal(unchanged, again):
        raise ValueError("check_autoregressive: outputs must be the same in every call, got different ones")
    change = torch.zeros(variables, variables)
    for first in range(0, variables, together):
        inputs = torch.arange(first, min(first + together, variables), device=x.device)
        changed = bases.clone()
        own = changed.unflatten(0, (together, len(moves)))
        for k, j in enumerate(inputs.tolist()):
            own[k, :, j] = rows[value_index, j]
        sizes = (call(changed.reshape(-1, *call.shape)) - unchanged).abs().nan_to_num(nan=math.inf)
        largest = _largest_by_owner(sizes.unflatten(0, (together, len(moves))).amax(1), call.owners, variables)
        change[:, inputs.cpu()] = largest[: len(inputs)].T.cpu().to(change.dtype)
    return change
