"""zuko: MaskedAutoregressiveTransform and the flows made of it."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.utils import _sum_rightmost

from ..conditioners.conditioner import Conditioner
from ..conditioners.stepping import broadcast_rows
from .attaching import lend
from .chains import Chain
from .density import Evaluation
from .fused import Head
from .inverses import Inverse, Passes, agree
from .plain import Reading, read_sequential

__all__ = ["CHAIN", "KIND", "is_chain", "matches"]


def matches(module: Any) -> bool:
    names = "hyper", "univariate", "shapes", "total", "passes", "meta"
    return all(hasattr(module, name) for name in names) and isinstance(module.hyper, nn.Sequential)


def is_chain(module: Any) -> bool:
    transforms = getattr(module, "transforms", None)
    return isinstance(transforms, nn.ModuleList) and any(matches(own) for own in transforms)


class Zuko:
    """Its ``forward`` takes the context and returns a torch.distributions Transform, whose ``_inverse`` is replaced."""

    library = "zuko"
    network = "hyper"
    replaced = "inverse"
    evaluates = "call_and_ladj"
    stops_early = True

    def conditioners(self, module: Any, network: Any) -> Iterator[Conditioner]:
        reading = Reading()
        read_sequential(network, reading)
        first = next(part for part in network.modules() if hasattr(part, "mask"))
        last = [part for part in network.modules() if hasattr(part, "mask")][-1]
        variables = last.weight.shape[0] // module.total
        context = first.weight.shape[1] - variables
        yield Conditioner(
            tuple(reading.steps),
            variables,
            module.total,
            context_features=context,
            context_first=False if context else None,
            inactive=tuple(reading.inactive),
        )

    def raw(self, network: Any, x: Tensor, context: Tensor | None) -> Tensor:
        return network(x if context is None else torch.cat([x, context], -1))

    def univariate(self, module: Any) -> Callable[[Tensor, Tensor], Tensor]:
        def inverse(y: Tensor, parameters: Tensor) -> Tensor:
            sizes = [math.prod(shape) for shape in module.shapes]
            parts = parameters.split(sizes, -1)
            shaped = [
                part.unflatten(-1, (*shape, 1)).squeeze(-1) for part, shape in zip(parts, module.shapes, strict=True)
            ]
            return module.univariate(*shaped).inv(y)

        return inverse

    def heads(self, module: Any) -> Iterator[Head]:
        if isinstance(module.univariate, nn.Module):
            return
        # The options are read off a transform that the constructor makes: ten as raw scale, or as raw derivative.
        own = module.univariate(*(torch.full((1, *shape), 10.0, dtype=torch.float64) for shape in module.shapes))
        name = type(own).__name__
        if name == "MonotonicAffineTransform":
            yield Head("affine_soft_clip", (_limit(float(own.log_scale)),))
        elif name == "MonotonicRQSTransform":
            bound = float(own.horizontal[0, -1])
            yield Head("spline_soft_clip", (-bound, bound, _limit(float(own.derivatives[0, 1].log()))))

    def parametric(self, module: Any) -> bool:
        return isinstance(module.univariate, nn.Module)

    def passes(self, module: Any) -> int | None:
        return module.passes

    def one_pass(self, module: Any, x: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
        return module.meta(context, x).inv(y)

    def original(self, module: Any, y: Tensor, context: Tensor | None) -> Tensor:
        return type(module).forward(module, context).inv(y)

    def evaluated(self, module: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return type(module).forward(module, context).call_and_ladj(x)

    def attributes(self, module: Any, inverse: Inverse | None, density: Evaluation | None) -> dict[str, Any]:
        run = _until_equal(Passes(module)) if inverse is None else _inverted(inverse)

        def forward(self: Any, c: Tensor | None = None) -> Any:
            def inverse(transform: Any, y: Tensor) -> Tensor:
                return run(self, c, y)

            def call_and_ladj(transform: Any, x: Tensor) -> tuple[Tensor, Tensor]:
                found = _flattened(density, x, c)
                return type(self).forward(self, c).call_and_ladj(x) if found is None else found

            transform = type(self).forward(self, c)
            if density is None:
                lend(transform, _inverse=inverse)
            else:
                lend(transform, _inverse=inverse, call_and_ladj=call_and_ladj)
            return transform

        return {"forward": types.MethodType(forward, module)}


class ZukoChain:
    """LazyComposedTransform, whose ``forward`` takes the context and returns a composed Transform."""

    library = "zuko"
    evaluates = "call_and_ladj"

    def children(self, module: Any) -> list[nn.Module]:
        return list(module.transforms._modules.values())

    def order(self, child: Any) -> None:
        return None

    def evaluated(self, module: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return type(module).forward(module, context).call_and_ladj(x)

    def evaluate(self, module: Any, chain: Chain, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        return _chained(chain, type(module).forward(module, context), x, context)

    def attributes(self, module: Any, chain: Chain) -> dict[str, Any]:
        def forward(self: Any, c: Tensor | None = None) -> Any:
            def call_and_ladj(transform: Any, x: Tensor) -> tuple[Tensor, Tensor]:
                transform = type(self).forward(self, c) if transform is None else transform
                found = _chained(chain, transform, x, c)
                return type(transform).call_and_ladj(transform, x) if found is None else found

            transform = type(self).forward(self, c)
            lend(transform, call_and_ladj=call_and_ladj)
            return transform

        return {"forward": types.MethodType(forward, module)}


KIND = Zuko()
CHAIN = ZukoChain()


def _flattened(density: Evaluation, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """The density where x (..., D) and the context (..., C) have any leading dimensions, which are broadcast."""
    batch = x.shape[:-1] if c is None else torch.broadcast_shapes(x.shape[:-1], c.shape[:-1])
    if len(batch) == 1 and x.shape[:-1] == batch and (c is None or c.shape[:-1] == batch):
        return density(x, c)
    context = None if c is None else c.expand(*batch, c.shape[-1]).reshape(-1, c.shape[-1])
    found = density(x.expand(*batch, x.shape[-1]).reshape(-1, x.shape[-1]), context)
    return None if found is None else (found[0].reshape(*batch, x.shape[-1]), found[1].reshape(batch))


def _chained(chain: Chain, transform: Any, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor] | None:
    def alone(index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        own = transform.transforms[index]
        dims = [part.codomain.event_dim - part.domain.event_dim for part in transform.transforms[:index]]
        y, log_det = own.call_and_ladj(x)
        return y, _sum_rightmost(log_det, transform.domain_dim + sum(dims) - own.domain.event_dim)

    return chain(x, c, alone, _flattened)


def _limit(clipped: float, raw: float = 10.0) -> float:
    """The limit of clipped = raw / (1 + raw / limit)."""
    return 1 / (1 / clipped - 1 / raw)


def _inverted(inverse: Inverse) -> Callable[[nn.Module, Tensor | None, Tensor], Tensor]:
    def run(module: Any, c: Tensor | None, y: Tensor) -> Tensor:
        tensors = inverse.usable(y, c)
        if tensors is None:
            return _original(module, c, y)
        if c is None and y.dim() == 2:
            return inverse(y, None, tensors)[0]
        batch = y.shape[:-1] if c is None else torch.broadcast_shapes(y.shape[:-1], c.shape[:-1])
        rows = None if c is None else broadcast_rows(c, batch)
        flat = y.expand(*batch, y.shape[-1]).reshape(-1, y.shape[-1])
        return inverse(flat, rows, tensors)[0].reshape(*batch, y.shape[-1])

    return run


def _until_equal(passes: Passes) -> Callable[[nn.Module, Tensor | None, Tensor], Tensor]:
    def run(module: Any, c: Tensor | None, y: Tensor) -> Tensor:
        def short() -> tuple[Tensor, ...]:
            x = torch.zeros_like(y)
            for _ in range(module.passes):
                before, x = x, module.meta(c, x).inv(y)
                if x.shape == before.shape and agree(x, before):
                    break
            return (x,)

        return passes(short, lambda: (_original(module, c, y),), y, c)[0]

    return run


def _original(module: Any, c: Tensor | None, y: Tensor) -> Tensor:
    return type(module).forward(module, c)._inverse(y)
