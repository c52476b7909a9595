"""Reads a conditioner so that it can be evaluated one variable at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..conditioners.conditioner import Conditioner, Unsuitable
from ..conditioners.stepping import Incremental
from .checks import check_parameters, probe, random, randomized, trying
from .registry import transform_kind

if TYPE_CHECKING:
    from .transforms import Kind

__all__ = ["incremental"]


def incremental(network: Any) -> Incremental:
    """A conditioner of another library, evaluated one variable at a time, each hidden unit once.

    Args:
        network: a MADE of nflows or normflows, an AutoRegressiveNN or ConditionalAutoRegressiveNN of pyro, a MaskedMLP
            of zuko without a context, a torch.nn.Sequential of masked layers and activations, or an autoregressive
            transform, for its conditioner. In evaluation mode, if it has dropout or batch normalisation.

    Returns:
        An :class:`Incremental` with ``begin`` and ``next``. It shares the network's tensors.

    Raises:
        ValueError: if the network is of no known form, is not autoregressive, or gives another output than what was
            read.
    """
    reasons, kind = [], transform_kind(network)
    try:
        transform = network
        if kind is not None:
            network = getattr(network, kind.network)
        exact = randomized(probe(network))
        like = next((parameter for parameter in exact.parameters()), torch.empty(0, dtype=torch.float64))
        for conditioner, raw in _candidates(transform, kind, network):
            try:
                with trying("its forward"):
                    x = random(like, 3, conditioner.variables)
                    context = random(like, 3, conditioner.context_features) if conditioner.context_features else None
                    check_parameters(Incremental(conditioner, exact), functools.partial(raw, exact), x, context)
                    return Incremental(conditioner, network)
            except Unsuitable as reason:
                reasons.append(str(reason))
    except Unsuitable as reason:
        reasons.append(str(reason))
    why = "; ".join(dict.fromkeys(reasons)) or f"{type(network).__name__} is of no known form"
    raise ValueError(f"incremental: network must be a conditioner that can be read, got one that cannot: {why}")


Raw = Callable[[nn.Module, Tensor, Tensor | None], Tensor]


def _candidates(transform: nn.Module, kind: Kind | None, network: Any) -> Iterator[tuple[Conditioner, Raw]]:
    from . import nflows, plain, pyro

    if kind is not None:
        for conditioner in kind.conditioners(transform, network):
            yield conditioner, kind.raw
    elif nflows.is_made(network):
        for gated in (False, True):
            for conditioner in nflows.read_made(network, None, gated):
                yield conditioner, nflows.KIND.raw
    elif pyro.is_network(network):
        for conditioner in pyro.read_network(network):
            yield conditioner, pyro.Pyro("arn").raw
    else:
        for conditioner in plain.read_conditioner(network):
            yield conditioner, plain.raw
