"""pyro: AffineAutoregressive and SplineAutoregressive, also on a context, with an AutoRegressiveNN."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..conditioners.conditioner import Add, Conditioner, Elementwise, Masked, Unsuitable
from ..conditioners.stepping import broadcast_rows
from .attaching import lend, shallow
from .density import Evaluation
from .fused import Head
from .inverses import Inverse
from .plain import Reading, add_function

__all__ = ["kind_of", "read_network"]

_AFFINE = "arn", "log_scale_min_clip", "log_scale_max_clip", "sigmoid_bias", "stable"


def kind_of(module: Any) -> Pyro | None:
    """How a transform of pyro is read, or None if it is none."""
    if (
        hasattr(module, "condition")
        and hasattr(module, "kwargs")
        and isinstance(getattr(module, "nn", None), nn.Module)
    ):
        if not is_network(module.nn):
            return None
        return _of(type(module).condition(module, None), "nn")
    return _of(module, "arn") if isinstance(getattr(module, "arn", None), nn.Module) else None


def _of(transform: Any, network: str) -> Pyro | None:
    if all(hasattr(transform, name) for name in _AFFINE):
        return Affine(network)
    return Spline(network) if hasattr(transform, "arn") and hasattr(transform, "spline") else None


def is_network(network: Any) -> bool:
    return all(hasattr(network, name) for name in ("layers", "param_dims", "input_dim", "skip_layer", "f"))


def read_network(network: Any) -> Iterator[Conditioner]:
    """An AutoRegressiveNN, also a conditional one: masked layers with one activation, and a skip connection."""
    reading, last = Reading(), len(network.layers) - 1
    for index in range(last + 1):
        reading.add(Masked(reading.last, f"layers.{index}"))
        if index < last:
            add_function(reading, "f", network.f)
    if network.skip_layer is not None:
        outputs = reading.last
        reading.add(Masked(0, "skip_layer"))
        reading.add(Add(reading.last, outputs))
    context = network.layers[0].weight.shape[1] - network.input_dim
    inactive = ("f",) if isinstance(network.f, nn.Dropout) else ()
    yield Conditioner(
        tuple(step for step in reading.steps if not (inactive and isinstance(step, Elementwise))),
        network.input_dim,
        sum(network.param_dims),
        context_features=context,
        by_parameter=True,
        context_first=True if context else None,
        inactive=inactive,
    )


class Pyro:
    """The inverse is the method ``_inverse`` of a transform object; on a context ``condition`` makes that object."""

    library = "pyro"
    replaced = "inverse"
    evaluates: str | None = None
    stops_early = False

    def __init__(self, network: str) -> None:
        self.network = network

    def conditioners(self, module: Any, network: Any) -> Iterator[Conditioner]:
        if not is_network(network):
            raise Unsuitable(f"its conditioner, {type(network).__name__}, is of no known form")
        yield from read_network(network)

    def raw(self, network: Any, x: Tensor, context: Tensor | None) -> Tensor:
        outputs = network(x) if context is None else network(x, context=context)
        if isinstance(outputs, Tensor):
            return outputs.flatten(1)
        return torch.cat([own.reshape(len(x), -1) for own in outputs], 1)

    def transform(self, module: Any, context: Tensor | None) -> Any:
        return module if self.network == "arn" else type(module).condition(module, context)

    def univariate(self, module: Any) -> Callable[[Tensor, Tensor], Tensor]:
        raise NotImplementedError

    def heads(self, module: Any) -> Iterator[Head]:
        return iter(())

    def parametric(self, module: Any) -> bool:
        return False

    def passes(self, module: Any) -> int | None:
        return None

    def one_pass(self, module: Any, x: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
        network = getattr(module, self.network)
        outputs = self.raw(network, x, context).unflatten(1, (-1, network.input_dim)).transpose(1, 2)
        return self.univariate(module)(y, outputs)

    def original(self, module: Any, y: Tensor, context: Tensor | None) -> Tensor:
        transform = self.transform(module, context)
        return _original(transform)(y)

    def after(self, transform: Any, x: Tensor, y: Tensor, log_det: Tensor | None) -> None:
        """Sets what the original's ``_inverse`` leaves for log|det|; log|det dx/dy| (*batch) where it is known."""
        raise NotImplementedError

    def evaluated(self, module: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def attributes(self, module: Any, inverse: Inverse | None, density: Evaluation | None) -> dict[str, Any]:
        def _inverse(self_: Any, y: Tensor) -> Tensor:
            network: Any = self_.arn
            context = None
            if isinstance(network, functools.partial):
                network, context = network.func, network.keywords["context"]
            batch = y.shape[:-1]
            tensors = inverse.usable(y, context) if network is inverse.steps.network else None
            if tensors is None:
                return _original(self_)(y)
            if context is not None and torch.broadcast_shapes(context.shape[:-1], batch) != batch:
                return _original(self_)(y)
            rows = None if context is None else broadcast_rows(context, batch)
            x, log_det = inverse(y.reshape(-1, y.shape[-1]), rows, tensors)
            x = x.reshape(y.shape)
            self.after(self_, x, y, None if log_det is None else log_det.reshape(batch))
            return x

        if self.network == "arn":
            return {"_inverse": types.MethodType(_inverse, module)}

        def condition(self_: Any, context: Tensor) -> Any:
            transform = type(self_).condition(self_, context)
            lend(transform, _inverse=_inverse)
            return transform

        return {"condition": types.MethodType(condition, module)}


def _original(transform: Any) -> Callable[[Tensor], Tensor]:
    name = "_inverse_stable" if getattr(transform, "stable", False) else "_inverse"
    return types.MethodType(getattr(type(transform), name), transform)


class Affine(Pyro):
    """y = scale x + mean, or with ``stable`` y = scale x + (1 - scale) mean."""

    def conditioners(self, module: Any, network: Any) -> Iterator[Conditioner]:
        for conditioner in super().conditioners(module, network):
            if conditioner.parameters != 2:
                raise Unsuitable(f"its conditioner gives {conditioner.parameters} parameters, not a mean and a scale")
            yield conditioner

    def univariate(self, module: Any) -> Callable[[Tensor, Tensor], Tensor]:
        own = self.transform(module, None)
        lowest, highest, bias, stable = (getattr(own, name) for name in _AFFINE[1:])

        def inverse(y: Tensor, parameters: Tensor) -> Tensor:
            mean, scale = parameters.unbind(-1)
            if stable:
                inverse_scale = 1 + torch.exp(-scale - bias)
                return inverse_scale * y + (1 - inverse_scale) * mean
            # The gradient passes through the clamp, as in pyro.
            clamped = scale + (scale.clamp(lowest, highest) - scale).detach()
            return (y - mean) * torch.exp(-clamped)

        return inverse

    def heads(self, module: Any) -> Iterator[Head]:
        lowest, highest, bias, stable = (getattr(self.transform(module, None), name) for name in _AFFINE[1:])
        if stable:
            yield Head("affine_gated", (float(bias),))
        else:
            yield Head("affine_clamp", (float(lowest), float(highest)))

    def after(self, transform: Any, x: Tensor, y: Tensor, log_det: Tensor | None) -> None:
        # log_abs_det_jacobian adds up its last dimension, and computes it from x where it finds none.
        transform._cached_log_scale = None if log_det is None else -log_det[..., None]


class Spline(Pyro):
    """A rational spline of linear or quadratic order."""

    def univariate(self, module: Any) -> Callable[[Tensor, Tensor], Tensor]:
        spline = self.transform(module, None).spline
        sizes = getattr(module, self.network).param_dims

        def inverse(y: Tensor, parameters: Tensor) -> Tensor:
            parts = parameters.transpose(1, 2).split(sizes, 1)
            own: Any = shallow(spline, nn=lambda _: parts, input_dim=y.shape[1])
            return own.condition(None)._inverse(y)

        return inverse

    def after(self, transform: Any, x: Tensor, y: Tensor, log_det: Tensor | None) -> None:
        # One pass from the result gives it again, now with log|det|.
        spline = transform.spline.condition(x)
        spline._inverse(y)
        transform._cache_log_detJ = spline._cache_log_detJ
