"""Tensors that follow from how a module was made: the plan of a mask, an order, offsets. They are not buffers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn import functional as F
from typing_extensions import Self

__all__ = [
    "SavedStructure",
    "Structured",
    "building",
    "first_parameter",
    "follow_loaded",
    "nearly",
    "starts",
    "unmodified",
    "version_of",
]


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Tensors made in this scope are ordinary tensors on the CPU unless a device is given: the default device,
    ``torch.inference_mode`` and the transforms of ``torch.func`` do not affect them."""
    if torch.compiler.is_compiling():
        yield
        return
    with torch.inference_mode(False), torch.device("cpu"), temporarily_clear_interpreter_stack():
        yield


# What Structured is mixed with. Type checkers see that super() is one, which at run time it is.
if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object


class Structured(_Module):
    """A torch.nn.Module with tensors that are derived from its structure and kept as plain attributes.

    If they were buffers, an EMA over buffers would average them, DistributedDataParallel would broadcast them,
    ``torch.func.stack_module_state`` would stack them, and a meta device, ``to_empty`` and
    ``load_state_dict(assign=True)`` would leave them without values. None of those touches plain attributes. These
    tensors move with the parameters; where the parameters came to another device in some other way, ``_follow`` moves
    the tensors when they are used.
    """

    #: The tensors by the names of their attributes, on the device where they were last needed, which is never meta.
    _derived: dict[str, Tensor | None]
    #: The device of the attributes.
    _derived_on: torch.device | None = None

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The derived tensors, whose names only _set_derived knows."""

    def _set_derived(self, tensors: dict[str, Tensor | None], device: torch.device) -> None:
        """Takes tensors, on any device except meta, and sets them as attributes on ``device``."""
        with building():
            # A tensor that was made under inference_mode could not be saved for a backward pass.
            tensors = {
                name: tensor.clone() if tensor is not None and tensor.is_inference() else tensor
                for name, tensor in tensors.items()
            }
        # A new dict, since copies of a module may share the old one.
        self._derived = self.__dict__.get("_derived", {}) | tensors
        self._derived_on = None
        self._follow(device)

    def _follow(self, device: torch.device) -> None:
        """Moves the attributes to ``device`` if they are not there yet."""
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


class SavedStructure(Structured):
    """A module whose results depend on a part of its structure, such as an order, which its state_dict holds too."""

    def _decisive(self) -> dict[str, Tensor]:
        """The part of the structure that is saved beside the parameters, since the results depend on it."""
        raise NotImplementedError

    def _take_decisive(self, given: dict[str, Tensor]) -> None:
        """Takes what ``_decisive`` returned, or a part of it.

        Raises:
            ValueError: for values that are not allowed.
        """
        raise NotImplementedError

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: tensor for name, tensor in self._decisive().items()})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = [prefix + name for name in self._decisive()]
        rest = {key: value for key, value in state_dict.items() if key not in own}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if strict:
            missing_keys += [key for key in own if key not in state_dict]
        try:
            given = {key.removeprefix(prefix): state_dict[key] for key in own if key in state_dict}
            self._take_decisive({name: tensor for name, tensor in given.items() if not tensor.is_meta})
        except ValueError as error:
            error_msgs.append(f"{prefix.removesuffix('.') or type(self).__name__}: {error}")


def follow_loaded(module: Structured, _: object) -> None:
    """A hook that runs after load_state_dict: with assign=True the parameters may have moved to another device."""
    module._follow(module._home())


def starts(counts: Tensor) -> Tensor:
    """(n) counts -> (n + 1): where each of the n parts begins, and where the last one ends."""
    return F.pad(counts.cumsum(0), (1, 0))


def version_of(tensor: Tensor | None) -> int | None:
    """How often a tensor was modified in place; None if this is not counted, as under ``torch.inference_mode``."""
    return None if tensor is None or tensor.is_inference() else tensor._version


def unmodified(what: str, tensors: Sequence[Tensor]) -> Callable[[], None]:
    """Returns a function that raises if one of the tensors was written in place since: a backward pass that recomputes
    from them needs them unchanged. While compiling it checks nothing, since a graph has no such writes."""
    if torch.compiler.is_compiling():
        return lambda: None
    versions = [version_of(tensor) for tensor in tensors]

    def check() -> None:
        if [version_of(tensor) for tensor in tensors] != versions:
            raise RuntimeError(f"{what} must stay as they are until the backward pass, got one modified in place since")

    return check


def nearly(given: Tensor, own: Tensor | None) -> bool:
    """Whether given equals own, or is floating and rounds to it: an average of equal state_dicts keeps the order."""
    if own is None or given.shape != own.shape:
        return False
    return torch.equal((given.round() if given.is_floating_point() else given).long().cpu(), own)


def first_parameter(module: nn.Module) -> nn.Parameter | None:
    """next(module.parameters()), without collecting names: every call of a model needs it, so it must be fast."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for child in module._modules.values():
        found = None if child is None else first_parameter(child)
        if found is not None:
            return found
    return None
