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
from .posteriors import modules_of
from .registry import chain_kind, is_coupling, transform_kind
from .report import AccelerationReport, Left, Part

__all__ = ["accelerate", "accelerated", "acceleration_report", "restore"]

#: A torch.nn.Module, or a posterior of sbi, which holds some.
Module = TypeVar("Module")


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
        module: a flow, a transform, a network: any module that has such parts; or a posterior of sbi.
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
    roots = modules_of(module)
    reads = {name: _Read(root) for name, root in roots.items()}
    found = [pair for read in reads.values() for pair in read.found]
    if any(read.already for read in reads.values()) and not found:
        warnings.warn("accelerate: module is accelerated already, and nothing was done", stacklevel=2)
        return module
    left = [_below(name, own) for name, read in reads.items() for own in read.left]
    reasons = "; ".join(f"{own.name or type(module).__name__}: {own.reason}" for own in left)
    if not any(read.parts for read in reads.values()):
        raise ValueError(
            f"accelerate: module must have masked linear layers or autoregressive transforms, got "
            f"{type(module).__name__} with {f'none that can be accelerated: {reasons}' if reasons else 'none'}"
        )
    if strict and left:
        raise ValueError(f"accelerate: under strict every part must be accelerated, got some that were left: {reasons}")
    for name, root in roots.items():
        reads[name].attach(root)
    return module


class _Read:
    """What the parts of one module are: the plans of those that can be accelerated, and the report."""

    def __init__(self, root: nn.Module) -> None:
        self.found: list[tuple[nn.Module, Plan]] = []
        self.parts: list[Part] = []
        self.left: list[Left] = []
        self.already = False
        for name, part in root.named_modules():
            if attached(part):
                self.already = True
                continue
            try:
                own, reports = _read(name, part)
            except Unsuitable as reason:
                self.left.append(Left(name, type(part).__name__, str(reason)))
                continue
            self.parts += reports
            if own is not None:
                self.found.append((part, own))
        self._read_chains(root)

    def _read_chains(self, root: nn.Module) -> None:
        plans = {id(part): plan for part, plan in self.found}
        for name, part in root.named_modules():
            kind = None if attached(part) or id(part) in plans else chain_kind(part)
            if kind is None:
                continue
            from .chains import read_chain

            own, reports = read_chain(kind, name, part, plans)
            self.parts += reports
            if own is not None:
                self.found.append((part, own))

    def attach(self, root: nn.Module) -> None:
        if not self.parts and not self.left:
            return
        plans = {id(part): plan for part, plan in self.found}
        for part, plan in self.found:
            if part is not root:
                attach(part, plan)
        if not attached(root):
            attach(root, _Root(AccelerationReport(tuple(self.parts), tuple(self.left)), plans.get(id(root))))


def _below(name: str, own: Any) -> Any:
    """A line of a report, whose path begins at a module of this name."""
    prefix = f"{name}." if name else ""
    return replace(own, name=(prefix + own.name).rstrip("."))


def restore(module: Module) -> Module:
    """Undoes :func:`accelerate` for a module and all its parts: afterwards every object's ``__dict__`` is as before.

    Example:
        >>> restore(torch.nn.Linear(2, 2))
        Linear(in_features=2, out_features=2, bias=True)
    """
    for root in modules_of(module).values():
        for part in root.modules():
            detach(part)
    return module


@contextlib.contextmanager
def accelerated(module: Module, *, strict: bool = False) -> Iterator[Module]:
    """A scope in which a module is accelerated: :func:`accelerate` at its start, and at its end the parts that it
    accelerated are restored."""
    roots = modules_of(module).values()
    before = {id(part) for root in roots for part in root.modules() if attached(part)}
    if all(id(root) in before for root in roots):
        yield module
        return
    accelerate(module, strict=strict)
    try:
        yield module
    finally:
        for root in roots:
            for part in root.modules():
                if id(part) not in before:
                    detach(part)


def acceleration_report(module: Any) -> AccelerationReport:
    """What accelerate replaced by what in a module, what it did not and why.

    Raises:
        ValueError: if nothing in the module is accelerated.
    """
    parts, left = [], []
    for own, root in modules_of(module).items():
        for name, part in root.named_modules():
            plan = attachment(part)
            if isinstance(plan, _Root):
                path = ".".join(filter(None, (own, name)))
                parts += [_below(path, line) for line in plan.report.parts]
                left += [_below(path, line) for line in plan.report.left]
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
    if kind is None and is_coupling(module):
        raise Unsuitable("it is a coupling transform, not autoregressive: its inverse takes one pass already")
    if kind is None:
        return None, []
    from .transforms import read_transform

    return read_transform(kind, name, module)
