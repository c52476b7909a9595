"""Tensors that follow from how a module was made: the plan of a mask, an order, offsets. They are no buffers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn import functional as F
from typing_extensions import Self

__all__ = ["Structured", "building", "first_parameter", "follow_loaded", "nearly", "starts", "unmodified", "version_of"]


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Tensors made within are ordinary ones, and on the CPU where nothing else is said: whatever default device is set,
    under ``torch.inference_mode`` and under transforms of ``torch.func``."""
    if torch.compiler.is_compiling():
        yield
        return
    with torch.inference_mode(False), torch.device("cpu"), temporarily_clear_interpreter_stack():
        yield


class Structured:
    """A torch.nn.Module with tensors that are derived from its structure, as plain attributes.

    A buffer would be averaged by an EMA over buffers, broadcast by DistributedDataParallel, stacked by
    ``torch.func.stack_module_state``, and left without values by a meta device, ``to_empty`` and
    ``load_state_dict(assign=True)``. These tensors are not touched by any of those. They move with the parameters, and
    where those came to another device in some other way, ``_follow`` moves them when they are used.
    """

    #: The tensors by the names of their attributes, on the device where they were last needed, except meta.
    _derived: dict[str, Tensor | None]
    #: Where the attributes are.
    _derived_on: torch.device | None = None

    def _set_derived(self, tensors: dict[str, Tensor | None], device: torch.device) -> None:
        """Takes tensors, on any device but meta, as attributes on ``device``."""
        with building():
            # One that was made under inference_mode could not be saved for a backward pass.
            tensors = {
                name: tensor.clone() if tensor is not None and tensor.is_inference() else tensor
                for name, tensor in tensors.items()
            }
        # A dict of its own: copies of a module may share the one that there was.
        self._derived = self.__dict__.get("_derived", {}) | tensors
        self._derived_on = None
        self._follow(device)

    def _follow(self, device: torch.device) -> None:
        """Moves the attributes to ``device`` where they are not there yet."""
        if self._derived_on == device:
            return
        with building():
            moved = {name: None if tensor is None else tensor.to(device) for name, tensor in self._derived.items()}
        for name, tensor in moved.items():
            setattr(self, name, tensor)
        if device.type != "meta":
            self._derived = moved
        self._derived_on = device

    def _home(self) -> torch.device:
        """The device of the parameters."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._follow(self._home())
        return self


def follow_loaded(module: Structured, _: object) -> None:
    """A hook for after load_state_dict: with assign=True the parameters may have come to another device."""
    module._follow(module._home())


def starts(counts: Tensor) -> Tensor:
    """(n) counts -> (n + 1): where each of n parts begins, and where the last one ends."""
    return F.pad(counts.cumsum(0), (1, 0))


def version_of(tensor: Tensor | None) -> int | None:
    """How often a tensor was modified in place; None where that is not counted, as under ``torch.inference_mode``."""
    return None if tensor is None or tensor.is_inference() else tensor._version


def unmodified(what: str, tensors: Sequence[Tensor]) -> Callable[[], None]:
    """Raises, when it is called, where one of the tensors was written in place since: for what a backward pass computes
    again. Not while compiling, where a graph has no such writes."""
    if torch.compiler.is_compiling():
        return lambda: None
    versions = [version_of(tensor) for tensor in tensors]

    def check() -> None:
        if [version_of(tensor) for tensor in tensors] != versions:
            raise RuntimeError(f"{what} must stay as they are until the backward pass, got one modified in place since")

    return check


def nearly(given: Tensor, own: Tensor | None) -> bool:
    """Whether given is own, or floating numbers that round to it: an average of equal state_dicts is no other order."""
    if own is None or given.shape != own.shape:
        return False
    return torch.equal((given.round() if given.is_floating_point() else given).long().cpu(), own)


def first_parameter(module: nn.Module) -> nn.Parameter | None:
    """What next(module.parameters()) gives, without the names that it collects: every call of a model asks."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for child in module._modules.values():
        found = None if child is None else first_parameter(child)
        if found is not None:
            return found
    return None
