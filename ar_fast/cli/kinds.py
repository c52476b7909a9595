"""The models by name, with the options of the command line that each takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import flows, models, orderings
from .values import Characters

ORDERS = ("raster", "reversed", "snake", "random")


def sizes(text: str, option: str) -> list[int]:
    """ "64", "64,32" or "12x10" as integers."""
    try:
        numbers = [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{option}: must be positive whole numbers, as 64 or 64,64 or 28x28, got {text!r}")
    return numbers


@dataclass(frozen=True)
class Kind:
    """A model of the command line.

    Attributes:
        make: its class, or a function of the class's arguments.
        defaults: the value of each option that it takes.
        settings: how it is trained where no option says otherwise.
        one_layer: whether hidden_features is one number.
        reals: whether it is for reals only.
    """

    make: Callable[..., Any]
    defaults: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    one_layer: bool = True
    reals: bool = False


_COMMON = {"order": "raster", "components": 10}
KINDS = {
    "fvsbn": Kind(models.FVSBN, _COMMON, {"learning_rate": 0.03}),
    "armlp": Kind(models.ARMLP, _COMMON | {"hidden": "16", "activation": "sigmoid"}, {"learning_rate": 0.02}),
    "nade": Kind(models.NADE, _COMMON | {"hidden": "500", "activation": "sigmoid"}),
    "rnade": Kind(models.RNADE, _COMMON | {"hidden": "100", "activation": "relu"}, {"learning_rate": 5e-3}, reals=True),
    "deep-nade": Kind(
        models.DeepNADE, _COMMON | {"hidden": "500", "activation": "relu"}, {"learning_rate": 4e-3}, one_layer=False
    ),
    "offset-nade": Kind(
        models.OffsetNADE, _COMMON | {"hidden": "64", "activation": "sigmoid", "window": "4,4"}, one_layer=False
    ),
    "made": Kind(
        models.MADE,
        _COMMON | {"hidden": "500", "activation": "relu", "direct": False, "residual": False, "masks": 1, "orders": 1},
        {"learning_rate": 5e-3},
        one_layer=False,
    ),
    "rnn": Kind(
        models.RNN, _COMMON | {"hidden": "64", "cell": "gru", "layers": 1, "dropout": 0.0}, {"learning_rate": 5e-3}
    ),
    "char-rnn": Kind(
        models.CharRNN,
        {"hidden": "256", "cell": "gru", "layers": 1, "dropout": 0.0, "readout_dropout": 0.0, "embedding": None},
        {"learning_rate": 4e-3, "weight_decay": 0.0, "batch_size": 32, "epochs": 20, "clip": 1.0},
    ),
    "maf": Kind(
        flows.MAF,
        {"hidden": "64,64", "activation": "relu", "transforms": 5, "univariate": "affine"},
        {"learning_rate": 2e-3},
        one_layer=False,
        reals=True,
    ),
}
KINDS["iaf"] = Kind(
    lambda *args, **kwargs: flows.MAF(*args, inverse=True, **kwargs),
    KINDS["maf"].defaults,
    KINDS["maf"].settings,
    one_layer=False,
    reals=True,
)
_NAMES = {"layers": "num_layers", "embedding": "embedding_features"}


def arguments(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of a model: those that are given, and the defaults of the others.

    Raises:
        ValueError: if there is no such model, or it does not take an option.
    """
    if name not in KINDS:
        raise ValueError(f"MODEL: must be one of {', '.join(KINDS)}, got {name!r}")
    defaults = KINDS[name].defaults
    for option, value in given.items():
        if value is not None and option not in defaults:
            raise ValueError(f"--{option}: {name} has no such option, got {value!r}; it takes {', '.join(defaults)}")
    return defaults | {option: value for option, value in given.items() if value is not None}


def make(name: str, options: dict[str, Any], values: Any, seed: int, device: torch.device, dtype: torch.dtype) -> Any:
    """The model, with parameters drawn by torch's default generator.

    Raises:
        ValueError: if an option is wrong, or the model is not for such data.
    """
    kind, own = KINDS[name], dict(options)
    if isinstance(values, Characters) != (name == "char-rnn"):
        raise ValueError(f"MODEL: char-rnn is for texts, and only it is; got {name} and {values.description}")
    head = values.head(own.pop("components", 1))
    if kind.reals and (head.kind != "gaussian_mixture"):
        raise ValueError(f"MODEL: {name} is for reals only, got {values.description}: take nade, made or deep-nade")
    made: dict[str, Any] = {"device": device, "dtype": dtype}
    if "hidden" in own:
        hidden = sizes(own.pop("hidden"), "--hidden")
        if kind.one_layer and len(hidden) > 1:
            raise ValueError(f"--hidden: {name} has one hidden layer, so it must be one number, got {hidden}")
        made["hidden_features"] = hidden[0] if kind.one_layer else hidden
    if "order" in own:
        order = own.pop("order")
        if order != "raster":
            maker = getattr(orderings, order)
            made["order"] = maker(values.event_shape, seed) if order == "random" else maker(values.event_shape)
    if own.get("window") is not None:
        window = sizes(own["window"], "--window")
        own["window"] = window if len(values.event_shape) > 1 else window[0]
    masks, orders = own.pop("masks", 1), own.pop("orders", 1)
    if masks > 1:
        own |= {"degrees": "random", "degree_seed": seed, "n_masks": masks, "n_orders": orders}
    elif orders > 1:
        raise ValueError(f"--orders: each order needs a set of masks, so it must be at most --masks, 1, got {orders}")
    made |= {_NAMES.get(option, option): value for option, value in own.items()}
    if name == "char-rnn":
        return kind.make(values.vocabulary, **made)
    if name in ("maf", "iaf"):
        return kind.make(values.event_shape[0], **made)
    return kind.make(values.event_shape, head=head, **made)
