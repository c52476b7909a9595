"""Attributes that one module object gets in place of its class's, and how they leave it again."""

from __future__ import annotations

import copy
import types
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

__all__ = ["Plan", "attach", "attached", "attachment", "detach", "lend", "shallow"]

_RECORD = "_ar_fast_acceleration"


class _Absent:
    """Stands for an attribute that was not there; the class itself, which copies and pickles as itself."""


class Plan(Protocol):
    """How a module is accelerated. A plan belongs to no module object: a deep copy of the module gets the same plan."""

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        """The attributes that ``module`` gets, for example ``forward``; they use the tensors of this module object."""


class _Record:
    """What stands in a module's ``__dict__`` under _RECORD: the plan, and what the attributes replaced.

    It has no ``__dict__``, so that what walks through a module's attributes and writes into them, as sbi does to detach
    tensors, goes no further.
    """

    __slots__ = ("plan", "previous")

    def __init__(self, plan: Plan | None, previous: dict[str, Any]) -> None:
        self.plan, self.previous = plan, previous


def attached(module: nn.Module) -> bool:
    return _RECORD in module.__dict__


def attachment(module: nn.Module) -> Plan | None:
    """The module's plan, or None."""
    record = module.__dict__.get(_RECORD)
    return None if record is None else record.plan


def attach(module: nn.Module, plan: Plan) -> None:
    """Gives the module the plan's attributes.

    They stand in the ``__dict__`` of this object, so that its class, its Parameters, its state_dict and its hooks stay
    as they are. Three more keep copies right. Pickling and a shallow copy read ``__getstate__`` on the object and get
    what was there before. A deep copy, which reads ``__deepcopy__``, gets the plan's attributes for its own tensors. A
    replica of torch.nn.DataParallel goes without.
    """
    own = {
        **plan.attributes(module),
        "__getstate__": types.MethodType(_state, module),
        "__deepcopy__": types.MethodType(_deep_copy, module),
        "_replicate_for_data_parallel": types.MethodType(_replica, module),
    }
    _put(module, plan, own)


def lend(target: Any, **functions: Callable[..., Any]) -> None:
    """Gives functions to an object that a call made, such as a transform, as its methods: each takes the object first,
    or None where only the method was kept, as in ``make().method()``. Its copies and pickles go without."""
    # The object does not refer to itself: else each call would leave one to the garbage collector, which is slow.
    own = weakref.ref(target)
    _put(
        target, None, {name: _bound(function, own) for name, function in (*functions.items(), ("__getstate__", _state))}
    )


def _bound(function: Callable[..., Any], own: weakref.ref) -> Callable[..., Any]:
    return lambda *arguments: function(own(), *arguments)


def _put(target: Any, plan: Plan | None, attributes: dict[str, Any]) -> None:
    previous = {name: target.__dict__.get(name, _Absent) for name in attributes}
    target.__dict__.update(attributes)
    target.__dict__[_RECORD] = _Record(plan, previous)


def detach(module: nn.Module) -> None:
    """Takes away what :func:`attach` gave; does nothing to a module without."""
    _original(module.__dict__)


def shallow(module: nn.Module, **attributes: Any) -> nn.Module:
    """A module that shares everything with another one except these attributes, and is not accelerated."""
    other = object.__new__(type(module))
    other.__dict__.update(_original(dict(module.__dict__)), **attributes)
    return other


def _original(state: dict[str, Any]) -> dict[str, Any]:
    """The ``__dict__`` as it was, changed in place."""
    record = state.pop(_RECORD, None)
    if record is not None:
        for name, value in record.previous.items():
            if value is _Absent:
                state.pop(name, None)
            else:
                state[name] = value
    return state


def _state(target: Any) -> Any:
    of_class: Callable[[Any], Any] | None = getattr(type(target), "__getstate__", None)
    state = target.__dict__ if of_class is None else of_class(target)
    return _original(dict(state)) if isinstance(state, dict) else state


def _deep_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    record = module.__dict__[_RECORD]
    of_class = getattr(type(module), "__deepcopy__", None)
    if of_class is not None:
        other = of_class(module, memo)
        _original(other.__dict__)
    else:
        own = module.__dict__.pop("__deepcopy__")
        try:
            other = copy.deepcopy(module, memo)
        finally:
            module.__dict__["__deepcopy__"] = own
    attach(other, record.plan)
    return other


def _replica(module: nn.Module) -> nn.Module:
    other = type(module)._replicate_for_data_parallel(module)
    _original(other.__dict__)
    return other
