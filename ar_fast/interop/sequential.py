"""Reads an ordinary autoencoder: an nn.Sequential of linear layers with one activation between them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from .. import heads

if TYPE_CHECKING:
    from ..models import MADE

    Model = TypeVar("Model", bound=MADE)

__all__ = ["ACTIVATIONS", "from_autoencoder"]

# The activations, and the values that their arguments must have.
ACTIVATIONS: dict[type[nn.Module], tuple[str, dict[str, object]]] = {
    nn.ReLU: ("relu", {}),
    nn.Sigmoid: ("sigmoid", {}),
    nn.Tanh: ("tanh", {}),
    nn.ELU: ("elu", {"alpha": 1.0}),
    nn.Softplus: ("softplus", {"beta": 1.0, "threshold": 20.0}),
    nn.SiLU: ("silu", {}),
    nn.GELU: ("gelu", {"approximate": "none"}),
    nn.LeakyReLU: ("leaky_relu", {"negative_slope": 0.01}),
}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@torch.no_grad()
def from_autoencoder(
    kind: type[Model],
    module: nn.Sequential,
    event_shape: int | Sequence[int],
    *,
    degrees: str | Sequence[Tensor | Sequence[int]],
    **arguments: Any,
) -> Model:
    """A model of class ``kind``, MADE or a subclass, with the layers of module; see MADE.from_autoencoder.

    The other arguments are those of the constructor.
    """
    found = _read(module)
    linears, first = found.linears, found.linears[0].weight
    hidden_features = [linear.out_features for linear in linears[:-1]]
    model = kind(
        event_shape,
        hidden_features,
        found.activation,
        degrees=degrees,
        **arguments,
        device=first.device,
        dtype=first.dtype,
    )
    if found.ends_with_sigmoid and not isinstance(model.head, heads.Bernoulli):
        raise ValueError(f"MADE.from_autoencoder: a last Sigmoid needs head Bernoulli, got {model.head!r}")
    for name, given, layer_features, of in (
        ("first", linears[0].in_features, model.layers[0].in_features, "inputs"),
        ("last", linears[-1].out_features, model.layers[-1].out_features, "outputs"),
    ):
        if given != layer_features:
            raise ValueError(
                f"MADE.from_autoencoder: the {name} layer must have {layer_features} {of} for {model.variables} "
                f"variables with head {model.head!r}, got {given}"
            )

    every = torch.arange(model.variables)
    stored = every if model._by_variable or model.order is None else model.order.cpu()
    counts = [model.counts] * model.variables if isinstance(model.counts, int) else model.counts
    places = [_columns_of(torch.tensor(model.head.inputs(model.variables)), stored)]
    for index, units in enumerate(hidden_features):
        place = torch.arange(units)
        if not isinstance(degrees, str):
            place = torch.as_tensor(degrees[index]).cpu().argsort(stable=True)
        places.append(place)
    places.append(_columns_of(torch.tensor(counts), stored))
    for layer, linear, (below, own) in zip(model.layers, linears, itertools.pairwise(places), strict=True):
        layer.weight.copy_(linear.weight[own.to(first.device)][:, below.to(first.device)])
        layer.bias.zero_()
        if linear.bias is not None:
            layer.bias.copy_(linear.bias[own.to(first.device)])

    changes = list(found.changes)
    for index, layer in enumerate(model.layers):
        seen = int(layer.mask.extents.sum())
        changes.append(f"Of the {layer.weight.numel()} weights of layer {index}, {seen} have an effect.")
    for index, own in enumerate(model.degrees):
        again = "" if torch.equal(places[index + 1], torch.arange(len(own))) else ", and are sorted by them"
        changes.append(f"The units of hidden layer {index} have degrees {int(own.min())} ... {int(own.max())}{again}.")
    if found.ends_with_sigmoid:
        changes.append("The last Sigmoid became the head, whose parameters are logits.")
    model.changes = changes
    return model


@dataclass
class _Autoencoder:
    """What was read: the layers, the activation between them, whether a Sigmoid ends them, and what was left out."""

    linears: list[nn.Linear] = field(default_factory=list)
    activation: str = ""
    ends_with_sigmoid: bool = False
    changes: list[str] = field(default_factory=list)


def _read(module: nn.Module) -> _Autoencoder:
    """Raises ValueError for anything except linear layers with the same activation between each two of them."""
    if not isinstance(module, nn.Sequential):
        raise _refused(f"module must be an nn.Sequential, got {type(module).__name__}")
    found = _Autoencoder()
    between: list[Any] = []
    for name, part in _flattened(module):
        if type(part) is nn.Linear:
            if found.linears:
                _take_activation(found, between, f"before {name}")
            between = []
            _take_linear(found, name, part)
        elif type(part) is nn.Flatten:
            found.changes.append(f"{name}, a Flatten, was left out: the model takes events in their shape.")
        elif isinstance(part, nn.Dropout):
            if part.training and part.p > 0:
                raise _refused(f"{name}, a Dropout, must be in eval mode, got one in training mode")
            found.changes.append(f"{name}, a Dropout in eval mode, was left out: it does nothing there.")
        elif type(part) in ACTIVATIONS:
            between.append((name, part))
        else:
            names = ", ".join(kind.__name__ for kind in ACTIVATIONS)
            raise _refused(f"{name} must be Linear, Flatten, Dropout or one of {names}, got {type(part).__name__}")
    if len(found.linears) < 2:
        raise _refused(f"module must have two or more Linear layers, got {len(found.linears)}")
    if between:
        if len(between) > 1 or type(between[0][1]) is not nn.Sigmoid:
            kinds = ", ".join(type(part).__name__ for _, part in between)
            raise _refused(f"module must end with a Linear, or with one Sigmoid after it, got {kinds} there")
        found.ends_with_sigmoid = True
    return found


def _refused(message: str) -> ValueError:
    return ValueError(f"MADE.from_autoencoder: {message}")


def _flattened(module: nn.Sequential, prefix: str = "module") -> Iterator[tuple[str, nn.Module]]:
    for name, part in module.named_children():
        own = f"{prefix}[{name}]"
        if isinstance(part, nn.Sequential):
            yield from _flattened(part, own)
        else:
            yield own, part


def _take_linear(found: _Autoencoder, name: str, linear: nn.Linear) -> None:
    weight = linear.weight
    if weight.dtype not in _DTYPES:
        raise _refused(f"{name} must be float32, float64, bfloat16 or float16, got {weight.dtype}")
    if found.linears:
        first, before = found.linears[0].weight, found.linears[-1]
        if (weight.dtype, weight.device) != (first.dtype, first.device):
            raise _refused(
                f"{name} must have the dtype and device of the first layer, {first.dtype} on {first.device}, "
                f"got {weight.dtype} on {weight.device}"
            )
        if linear.in_features != before.out_features:
            raise _refused(
                f"{name} must take the {before.out_features} outputs of the layer before, "
                f"got {linear.in_features} inputs"
            )
    if linear.bias is None:
        found.changes.append(f"{name} had no bias and has one of zeros.")
    found.linears.append(linear)


def _take_activation(found: _Autoencoder, between: list[tuple[str, nn.Module]], where: str) -> None:
    if len(between) != 1:
        raise _refused(f"there must be one activation {where}, got {len(between)}")
    name, part = between[0]
    activation, arguments = ACTIVATIONS[type(part)]
    for argument, value in arguments.items():
        if getattr(part, argument) != value:
            raise _refused(
                f"{name}, {type(part).__name__}, must have {argument} = {value!r}, got {getattr(part, argument)!r}"
            )
    if found.activation and activation != found.activation:
        raise _refused(f"all activations must be the same, got {found.activation} and {activation}")
    found.activation = activation


def _columns_of(counts: Tensor, order: Tensor) -> Tensor:
    """The columns (or rows) of variables 0 ... D-1, sorted into this order of variables; ``counts`` is by variable."""
    starts = counts.cumsum(0) - counts
    return torch.cat([torch.arange(int(counts[v])) + starts[v] for v in order])
