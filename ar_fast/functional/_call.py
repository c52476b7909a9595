"""Chooses which implementation runs a call of an op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _fallback, _library

__all__ = ["call", "transformed"]


def call(name: str, *arguments: Any) -> Any:
    """Calls the op ``name`` with its schema's arguments, through the entry point that can run it."""
    # This is None also while torch.compile traces, whereas peek_interpreter_stack is not None there.
    if torch._C._functorch.maybe_current_level() is not None:
        return _fallback.call(name, "under torch.func transforms", *arguments)
    # Outside forward_ad.dual_level no tensor can have a tangent, so none is checked.
    if forward_ad._current_level >= 0 and _any_tangent(arguments):
        return _fallback.call(name, "under forward-mode AD", *arguments)
    entry_point = _library.entry_point(name)
    if entry_point is None:
        return _fallback.call(name, _library.because, *arguments)
    return entry_point(*arguments)


def transformed() -> bool:
    """Whether tensors may be batched or have a tangent: under transforms of torch.func, or in a dual level."""
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def _any_tangent(arguments: Sequence[Any]) -> bool:
    for argument in arguments:
        if isinstance(argument, Tensor):
            if forward_ad.unpack_dual(argument).tangent is not None:
                return True
        elif isinstance(argument, list) and _any_tangent(argument):
            return True
    return False
