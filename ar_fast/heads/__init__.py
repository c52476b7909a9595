"""Heads: the family of distributions that the conditionals p(x_i | x_<i) are taken from.

A head says what the parameters of a variable mean. A model gives each variable ``counts`` of them, side by side.
csrc/kernels/head.h and ``ar_fast.reference`` define the arithmetic, and how temperature changes a draw.
"""

from __future__ import annotations

from typing import Any

from .base import Head
from .bernoulli import Bernoulli
from .categorical import Categorical
from .mixtures import GaussianMixture, LogisticMixture
from .per_variable import PerVariable

__all__ = [
    "Bernoulli",
    "Categorical",
    "GaussianMixture",
    "Head",
    "LogisticMixture",
    "PerVariable",
    "from_config",
]

_HEADS = {head.__name__: head for head in (Bernoulli, Categorical, GaussianMixture, LogisticMixture, PerVariable)}


def from_config(config: dict[str, Any]) -> Head:
    """The head that ``config()`` described.

    Raises:
        ValueError: if there is no such head, or it does not take these arguments.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in _HEADS:
        raise ValueError(f"heads: name must be one of {', '.join(_HEADS)}, got {name!r}")
    try:
        if name == "PerVariable" and "heads" in arguments:
            arguments["heads"] = [from_config(own) for own in arguments["heads"]]
        return _HEADS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"heads: {name} must be made with its own arguments, got {arguments!r}: {error}") from None
