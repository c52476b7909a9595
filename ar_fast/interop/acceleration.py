"""Makes masked autoregressive networks of other libraries faster, in place, and undoes it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from ..conditioners.conditioner import Unsuitable
from .attaching import Plan, attach, attached, attachment, detach
from .masked_layers import is_masked, read_layer
from .registry import transform_kind
from .report import AccelerationReport, Left, Part

__all__ = ["accelerate", "accelerated", "acceleration_report", "restore"]

Module = TypeVar("Module", bound=nn.Module)


class _Root:
    """What the module that accelerate was called with gets: the report. Its parts have plans of their own."""

    def __init__(self, report: AccelerationReport, plan: Plan | None) -> None:
        self.report, self.plan = report, plan

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        return {} if self.plan is None else self.plan.attributes(module)


def accelerate(module: Module, *, strict: bool = False) -> Module:
    """Makes the masked autoregressive networks in a module faster, in place: same weights, same results up to rounding.

    It knows the flows and networks of zuko, nflows (and copies of it), normflows and pyro, and masked linear layers of
    any library, by their structure. Each reading is checked against the module's own output; what does not agree is
    left. Masked layers run on :func:`ar_fast.functional.masked_linear`, and the inverse of an autoregressive transform
    computes each hidden unit once; :func:`acceleration_report` says which part runs how. Where the original is faster,
    which is measured here for a few milliseconds per shape of layer, the original runs.

    Only these objects change: their classes, Parameters, buffers, state_dict and hooks stay. A deep copy is accelerated
    too and uses its own parameters. Pickles hold the original. docs/drop-in.md says more.

    Args:
        module: a flow, a transform, a network: any module that has such parts.
        strict: raise if any part that looks accelerable was left.

    Returns:
        module itself.

    Raises:
        ValueError: if nothing in it was recognised, or under ``strict`` if a part was left; nothing is changed then.

    Example:
        >>> from ar_fast.nn import MaskedLinear
        >>> accelerate(torch.nn.Linear(2, 2))
        Traceback (most recent call last):
            ...
        ValueError: accelerate: module must have masked linear layers or autoregressive transforms, got Linear with none
    """
    found: list[tuple[nn.Module, Plan]] = []
    parts: list[Part] = []
    left: list[Left] = []
    already = False
    for name, part in module.named_modules():
        if attached(part):
            already = True
            continue
        try:
            own, reports = _read(name, part)
        except Unsuitable as reason:
            left.append(Left(name, type(part).__name__, str(reason)))
            continue
        parts += reports
        if own is not None:
            found.append((part, own))
    if already and not found:
        warnings.warn("accelerate: module is accelerated already, and nothing was done", stacklevel=2)
        return module
    if not parts:
        reasons = "; ".join(f"{own.name or type(module).__name__}: {own.reason}" for own in left)
        raise ValueError(
            f"accelerate: module must have masked linear layers or autoregressive transforms, got "
            f"{type(module).__name__} with {f'none that can be accelerated: {reasons}' if reasons else 'none'}"
        )
    if strict and left:
        reasons = "; ".join(f"{own.name or type(module).__name__}: {own.reason}" for own in left)
        raise ValueError(f"accelerate: under strict every part must be accelerated, got some that were left: {reasons}")
    report = AccelerationReport(tuple(parts), tuple(left))
    plans = {id(part): plan for part, plan in found}
    for part, plan in found:
        if part is not module:
            attach(part, plan)
    if not attached(module):
        attach(module, _Root(report, plans.get(id(module))))
    return module


def restore(module: Module) -> Module:
    """Undoes :func:`accelerate` for a module and all its parts: afterwards every object's ``__dict__`` is as before.

    Example:
        >>> restore(torch.nn.Linear(2, 2))
        Linear(in_features=2, out_features=2, bias=True)
    """
    for part in module.modules():
        detach(part)
    return module


@contextlib.contextmanager
def accelerated(module: Module, *, strict: bool = False) -> Iterator[Module]:
    """A scope in which a module is accelerated: :func:`accelerate` at its start, and at its end the parts that it
    accelerated are restored."""
    if attached(module):
        yield module
        return
    before = {id(part) for part in module.modules() if attached(part)}
    accelerate(module, strict=strict)
    try:
        yield module
    finally:
        for part in module.modules():
            if id(part) not in before:
                detach(part)


def acceleration_report(module: nn.Module) -> AccelerationReport:
    """What accelerate replaced by what in a module, what it did not and why.

    Raises:
        ValueError: if nothing in the module is accelerated.
    """
    parts, left = [], []
    for name, part in module.named_modules():
        plan = attachment(part)
        if isinstance(plan, _Root):
            prefix = f"{name}." if name else ""
            parts += [replace(own, name=(prefix + own.name).rstrip(".")) for own in plan.report.parts]
            left += [replace(own, name=(prefix + own.name).rstrip(".")) for own in plan.report.left]
    if not parts:
        raise ValueError("acceleration_report: module must be one that accelerate was called with, or hold one")
    return AccelerationReport(tuple(parts), tuple(left))


def _read(name: str, module: nn.Module) -> tuple[Plan | None, list[Part]]:
    """The plan of one module, and its part of the report; neither if it is nothing that could be accelerated.

    Raises:
        Unsuitable: if it looks like something known and is not.
    """
    if is_masked(module):
        plan, part = read_layer(name, module)
        return plan, [part]
    kind = transform_kind(module)
    if kind is None:
        return None, []
    from .transforms import read_transform

    return read_transform(kind, name, module)
