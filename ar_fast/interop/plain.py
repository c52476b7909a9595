"""Masked networks that are a torch.nn.Sequential, in any library and in user code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..conditioners.conditioner import Add, Conditioner, Elementwise, Masked, Normalized, Step, Unsuitable
from .masked_layers import is_masked
from .sequential import ACTIVATIONS

__all__ = ["Reading", "activation_name", "raw", "read_conditioner", "read_sequential"]


@dataclass
class Reading:
    """The steps read so far, and the modules that must not act."""

    steps: list[Step] = field(default_factory=list)
    inactive: list[str] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The value made last."""
        return len(self.steps)

    def add(self, step: Step) -> int:
        self.steps.append(step)
        return self.last


def read_sequential(root: nn.Module, reading: Reading, prefix: str = "") -> None:
    """Reads masked layers, functions, batch normalisation, dropout, and blocks that are added to their input.

    Raises:
        Unsuitable: where a part is none of these.
    """
    for name, part in root.named_children():
        path = f"{prefix}{name}"
        if is_masked(part):
            reading.add(Masked(reading.last, path))
        elif isinstance(part, nn.Sequential):
            before = reading.last
            read_sequential(part, reading, f"{path}.")
            # The only other Sequential that is known adds its input; any other one fails when the output is compared.
            if type(part).forward is not nn.Sequential.forward:
                reading.add(Add(reading.last, before))
        elif isinstance(part, nn.Identity | nn.Flatten):
            continue
        elif isinstance(part, nn.Dropout | nn.AlphaDropout):
            reading.inactive.append(path)
        elif isinstance(part, _BatchNorm):
            add_normalized(reading, path, part)
        else:
            add_function(reading, path, part)


def add_function(reading: Reading, path: str, function: object) -> None:
    """Adds an activation: whether it acts unit by unit shows when the output is compared."""
    if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
        raise Unsuitable(f"{path}, {type(function).__name__}, has parameters of its own")
    reading.add(Elementwise(reading.last, path))


#: The activations of :func:`ar_fast.functional.masked_linear` as functions of torch.
_FUNCTIONS = {
    **{getattr(functions, name): name for functions in (torch, F) for name in ("relu", "sigmoid", "tanh")},
    **{getattr(F, name): name for name in ("elu", "softplus", "silu", "gelu", "leaky_relu")},
}


def activation_name(function: Any) -> str | None:
    """The name that the ops have for an activation, a module or function; None if they have none."""
    name, arguments = ACTIVATIONS.get(type(function), (None, {}))
    if any(getattr(function, argument) != value for argument, value in arguments.items()):
        return None
    return name or (_FUNCTIONS.get(function) if callable(function) else None)


def add_normalized(reading: Reading, path: str, part: Any) -> None:
    if part.running_mean is None:
        raise Unsuitable(f"{path}, {type(part).__name__}, keeps no running statistics")
    reading.add(Normalized(reading.last, path))
    reading.inactive.append(path)


def read_conditioner(network: Any) -> Iterator[Conditioner]:
    """What a Sequential may be: its outputs are (D, K) or (K, D) flattened."""
    if not isinstance(network, nn.Sequential):
        return
    reading = Reading()
    read_sequential(network, reading)
    masked = [step for step in reading.steps if isinstance(step, Masked)]
    if not masked:
        return
    first: Any = network.get_submodule(masked[0].layer)
    last: Any = network.get_submodule(masked[-1].layer)
    variables, outputs = first.weight.shape[1], last.weight.shape[0]
    if variables == 0 or outputs % variables:
        raise Unsuitable(f"it has {outputs} outputs for {variables} inputs, which must be a multiple")
    for by_parameter in (False, True):
        yield Conditioner(
            tuple(reading.steps),
            variables,
            outputs // variables,
            by_parameter=by_parameter,
            inactive=tuple(reading.inactive),
        )


def raw(network: Any, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
    return network(x)
