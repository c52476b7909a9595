"""Masked autoregressive flows, and inverse autoregressive flows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .. import orderings
from .._integers import is_integer
from .._philox import philox_uniform
from .._structure import building, first_parameter
from .._vocabulary import MLP_ACTIVATIONS
from ..models import _files, _inputs
from ..models._calls import in_calls
from ..networks import check_hidden_features
from .distribution import FlowDistribution
from .transform import AutoregressiveTransform, through_all
from .univariate import UNIVARIATE, Affine, Spline, Univariate, from_config

__all__ = ["MAF", "load"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class MAF(nn.Module):
    r"""A masked autoregressive flow: noise is turned into data by a chain of autoregressive transforms.

    .. math::
        z = f_T(\dots f_1(x)), \quad z \sim N(0, I), \quad
        \log p(x) = \log N(z; 0, I) + \sum_t \log |\det f_t'|

    Each f_t is an :class:`AutoregressiveTransform` with an order of its own. The density takes one pass through the
    networks, and so does drawing: where other libraries evaluate each network once per variable,
    :func:`ar_fast.functional.masked_mlp_sample` computes each hidden unit once. Both have gradients.

    With ``inverse`` it is an inverse autoregressive flow (IAF): x = f_T(... f_1(z)). What a MAF computes for a density
    an IAF computes to draw, which is the faster of the two; its density inverts the transforms.

    A context enters every conditional, the first included. A flow computes in its own dtype, also under autocast.

    Args:
        features: D.
        context_features: C; 0 is no context.
        transforms: T, how many transforms.
        hidden_features: units of each hidden layer of each network, 1 to 16 layers.
        univariate: :class:`Affine` or :class:`Spline`, or "affine" or "spline" for those with their default arguments.
        activation: "relu", "sigmoid", "tanh", "elu", "softplus", "silu", "gelu" or "leaky_relu".
        inverse: make it an inverse autoregressive flow.
        orders: "alternating" is the order of the variables and its reverse in turn, "random" draws one for each
            transform; or T orders, each of D integers, order[p] = index of the variable at position p.
        order_seed: 0 ... 2^63 - 1, of random orders, which are the same on every machine.
        validate_args: check that values are finite. None checks on the CPU only, True on CUDA too.
        device: device of the parameters.
        dtype: float32 or float64.

    Raises:
        ValueError: for an argument that breaks a rule above.

    Sources: Papamakarios, Pavlakou, Murray, "Masked autoregressive flow", NeurIPS 2017; Kingma et al., "Improved
    variational inference with inverse autoregressive flow", NeurIPS 2016; Durkan, Bekasov, Murray, Papamakarios,
    "Neural spline flows", NeurIPS 2019.

    Example:
        >>> flow = MAF(3, context_features=2)
        >>> context = torch.randn(5, 2)
        >>> x = flow.sample(4, context, seed=0)
        >>> x.shape, flow.log_prob(x, context).shape
        (torch.Size([4, 5, 3]), torch.Size([4, 5]))
    """

    # What the files of models have: the orders are those of the transforms, in their tensors.
    order = standardization = None

    def __init__(
        self,
        features: int,
        context_features: int = 0,
        transforms: int = 5,
        hidden_features: Sequence[int] = (64, 64),
        univariate: str | Univariate = "affine",
        activation: str = "relu",
        *,
        inverse: bool = False,
        orders: str | Sequence[Tensor | Sequence[int]] = "alternating",
        order_seed: int = 0,
        validate_args: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, given, least in (
            ("features", features, 1),
            ("context_features", context_features, 0),
            ("transforms", transforms, 1),
        ):
            if not is_integer(given) or given < least:
                raise ValueError(f"MAF: {name} must be an integer >= {least}, got {given!r}")
        if isinstance(univariate, str) and univariate in UNIVARIATE:
            univariate = UNIVARIATE[univariate]()
        if not isinstance(univariate, Affine | Spline):
            raise ValueError(
                f"MAF: univariate must be one of {', '.join(UNIVARIATE)}, or a flows.Affine or flows.Spline, "
                f"got {univariate!r}"
            )
        if activation not in MLP_ACTIVATIONS:
            raise ValueError(f"MAF: activation must be one of {', '.join(MLP_ACTIVATIONS)}, got {activation!r}")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in _DTYPES.values():
            raise ValueError(
                f"MAF: dtype must be float32 or float64, since a flow and its inverse must agree, got {dtype}"
            )
        self.features, self.context_features = int(features), int(context_features)
        self.hidden_features, self.univariate = check_hidden_features("MAF", hidden_features), univariate
        self.activation, self.inverse, self.validate_args = activation, bool(inverse), validate_args
        self.event_shape = torch.Size([self.features])
        self._how_orders, self.order_seed = self._check_orders(orders, int(transforms), order_seed)
        self.transforms: Any = nn.ModuleList(
            AutoregressiveTransform(
                self.features,
                self.hidden_features,
                univariate,
                activation,
                order=self._order_of(index),
                context_features=self.context_features,
                device=device,
                dtype=dtype,
            )
            for index in range(int(transforms))
        )

    def _check_orders(
        self, given: str | Sequence[Tensor | Sequence[int]], transforms: int, seed: int
    ) -> tuple[str | list[list[int]], int]:
        if not is_integer(seed) or not 0 <= seed < 2**63:
            raise ValueError(f"MAF: order_seed must be an integer in 0 ... 2^63 - 1, got {seed!r}")
        if isinstance(given, str):
            if given not in ("alternating", "random"):
                raise ValueError(f"MAF: orders must be 'alternating', 'random' or {transforms} orders, got {given!r}")
            return given, int(seed)
        if len(given) != transforms:
            raise ValueError(f"MAF: orders must be one for each of {transforms} transforms, got {len(given)}")
        with building():
            return [orderings.check(order, self.features).tolist() for order in given], int(seed)

    def _order_of(self, index: int) -> Tensor | None:
        """The order of a transform."""
        with building():
            if not isinstance(self._how_orders, str):
                return torch.tensor(self._how_orders[index])
            if self._how_orders == "alternating":
                return orderings.reversed(self.features) if index % 2 else None
            uniform = philox_uniform(self.order_seed, torch.arange(self.features), torch.tensor(index))
            return uniform.argsort(stable=True)

    def reset_parameters(self) -> None:
        """Draws new initial parameters, from torch's default generator."""
        for transform in self.transforms:
            transform.reset_parameters()

    @property
    def device(self) -> torch.device:
        return first_parameter(self).device

    @property
    def dtype(self) -> torch.dtype:
        return first_parameter(self).dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of log_prob and samples: that of the parameters."""
        return self.dtype

    @property
    def _name(self) -> str:
        return type(self).__name__

    # Below values are (n, R, D) with contexts (R, C), or (N, D) without.

    def _forward(self, values: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Through all transforms: the result, and log|det| in float64."""
        if self.transforms[0].small:
            return through_all(self.transforms, values, context)
        log_det: Tensor | None = None
        for transform in self.transforms:
            values, own = transform(values, context)
            log_det = own if log_det is None else log_det + own
        return values, log_det

    def _backward(self, values: Tensor, context: Tensor | None, log_det_wanted: bool) -> tuple[Tensor, Tensor | None]:
        """Through the inverses of all transforms."""
        log_det: Tensor | None = None
        for transform in reversed(self.transforms):
            values, own = transform.inverse(values, context)
            log_det = own if log_det is None or own is None else log_det + own
        if log_det is None and log_det_wanted:
            log_det = -self._forward(values, context)[1]
        return values, log_det

    def _to_noise(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        with self._own_arithmetic():
            return self._backward(x, context, True) if self.inverse else self._forward(x, context)

    def _from_noise(self, z: Tensor, context: Tensor | None, log_det_wanted: bool) -> tuple[Tensor, Tensor | None]:
        with self._own_arithmetic():
            return self._forward(z, context) if self.inverse else self._backward(z, context, log_det_wanted)

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        def evaluate(x: Tensor, context: Tensor | None) -> Tensor:
            z, log_det = self._to_noise(x, context)
            return log_det + _normal(z)

        def multiply_adds() -> int:
            return sum(parameter.numel() for parameter in self.parameters())

        if context is None:
            return in_calls(self, multiply_adds, evaluate, x, None)
        if len(x) == 1:
            return in_calls(self, multiply_adds, lambda x, context: evaluate(x[None], context)[0], x[0], context)[None]
        return in_calls(self, lambda: len(context) * multiply_adds(), lambda x, _: evaluate(x, context), x, None)

    def _own_arithmetic(self) -> contextlib.AbstractContextManager[None]:
        kind = self.device.type
        return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()

    def _flatten(self, name: str, values: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Values and their context as the transforms take them, after all checks."""
        _inputs.check_tensor(self, name, values)
        if values.dim() == 0 or values.shape[-1] != self.features:
            raise ValueError(
                f"{self._name}: {name} must have shape (*batch, {self.features}), got {tuple(values.shape)}"
            )
        _inputs.check_context(self, context)
        _inputs.check_finite(self, name, values)
        batch, values = values.shape[:-1], values.to(self.dtype)
        if context is None:
            return values.reshape(batch.numel(), self.features), None
        own = context.shape[:-1]
        if batch[len(batch) - len(own) :] != own:
            raise ValueError(
                f"{self._name}: context must have shape (*context_batch, {self.context_features}) with context_batch "
                f"the last dimensions of the batch {tuple(batch)}, got {tuple(context.shape)}"
            )
        shape = batch[: len(batch) - len(own)].numel(), own.numel(), self.features
        return values.reshape(shape), context.reshape(own.numel(), self.context_features).to(self.dtype)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density in nats.

        Args:
            x: (*batch, D), in the flow's dtype, or of integers.
            context: (*context_batch, C) if the flow has context_features; context_batch are the last dimensions of
                batch.

        Returns:
            (*batch), summed in float64, in the flow's dtype.

        Raises:
            ValueError: for a wrong shape, dtype or device; under validate_args for values that are not finite.

        Example:
            >>> MAF(2).log_prob(torch.zeros(3, 2)).shape
            torch.Size([3])
        """
        values, contexts = self._flatten("x", x, context)
        return self._log_prob(values, contexts).to(self.dtype).reshape(x.shape[:-1])

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The noise z (*batch, D) that becomes x, and log|det dz/dx| (*batch) in float64; arguments as of log_prob.

        Example:
            >>> flow, x = MAF(2), torch.randn(3, 2)
            >>> z, log_det = flow.to_noise(x)
            >>> bool((flow.from_noise(z)[0] - x).abs().max() < 1e-4)
            True
        """
        values, contexts = self._flatten("x", x, context)
        z, log_det = self._to_noise(values, contexts)
        return z.reshape(x.shape), log_det.reshape(x.shape[:-1])

    def from_noise(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What noise z (*batch, D) becomes (*batch, D), and log|det dx/dz| (*batch) in float64; as ``to_noise``.

        Without gradients a MAF's row does not depend on the other rows, bit for bit.
        """
        values, contexts = self._flatten("z", z, context)
        x, log_det = self._from_noise(values, contexts, True)
        return x.reshape(z.shape), log_det.reshape(z.shape[:-1])

    def _draw(
        self,
        n: int | Sequence[int],
        context: Tensor | None,
        seed: int | None,
        generator: torch.Generator | None,
    ) -> tuple[torch.Size, Tensor, Tensor | None]:
        """The batch shape, the noise, and the context, after all checks."""
        shape = _inputs.sample_shape(self._name, "n", n)
        _inputs.check_context(self, context)
        own = torch.Size([]) if context is None else context.shape[:-1]
        drawn = torch.Generator(self.device).manual_seed(_inputs.draw_seed(self._name, seed, generator))
        rows = (shape.numel(),) if context is None else (shape.numel(), own.numel())
        z = torch.randn(*rows, self.features, generator=drawn, device=self.device, dtype=self.dtype)
        if context is not None:
            context = context.reshape(own.numel(), self.context_features).to(self.dtype)
        return shape + own, z, context

    @torch.no_grad()
    def sample(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws events, without gradients.

        The noise is that of torch.Generator with this seed: the same seed, n and device give the same samples.

        Args:
            n: how many, or a shape of samples.
            context: (*context_batch, C) if the flow has context_features; n events are drawn for each.
            seed: 0 ... 2^63 - 1. None takes one number from generator.
            generator: the seed is drawn from it; None is torch's default generator. Not used if seed is given.

        Returns:
            (*n, *context_batch, D).

        Raises:
            ValueError: for a wrong argument.

        Example:
            >>> MAF(3).sample(4, seed=0).shape
            torch.Size([4, 3])
        """
        return self.rsample(n, context, seed=seed, generator=generator)

    def rsample(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``sample`` with gradients, with respect to the parameters and the context; of a MAF differentiable once."""
        batch, z, contexts = self._draw(n, context, seed, generator)
        return self._from_noise(z, contexts, False)[0].reshape(batch + self.event_shape)

    def sample_and_log_prob(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``rsample`` and the log-density of its samples, (*n, *context_batch), both with gradients.

        Example:
            >>> x, log_prob = MAF(3).sample_and_log_prob(4, seed=0)
            >>> x.shape, log_prob.shape
            (torch.Size([4, 3]), torch.Size([4]))
        """
        batch, z, contexts = self._draw(n, context, seed, generator)
        x, log_det = self._from_noise(z, contexts, True)
        log_prob = (_normal(z) - log_det).to(self.dtype)
        return x.reshape(batch + self.event_shape), log_prob.reshape(batch)

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """The flow as a torch.distributions.Distribution, whose batch_shape is that of the context."""
        _inputs.check_context(self, context)
        return FlowDistribution(self, context)

    def save(self, directory: str | Path) -> None:
        """Writes model.safetensors and config.json into directory, which is created if needed."""
        _files.save(self, Path(directory))

    def load(self, directory: str | Path) -> Self:
        """Reads what ``save`` wrote into this flow, and returns it. :func:`ar_fast.flows.load` also makes the flow.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file is truncated or not a flow's, or of a flow with other arguments. This flow does not
                change then.
        """
        _files.load(self, Path(directory))
        return self

    def _unsaved_structure(self) -> list[Any]:
        """The degrees: another version might spread them differently."""
        return [[own.tolist() for own in transform._degrees()] for transform in self.transforms]

    def _check_loaded(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.endswith(".order"):
                orderings.check(tensor, self.features)

    def config(self) -> dict[str, Any]:
        """The flow's arguments as JSON holds them, except the device."""
        return {
            "features": self.features,
            "context_features": self.context_features,
            "transforms": len(self.transforms),
            "hidden_features": self.hidden_features,
            "univariate": self.univariate.config(),
            "activation": self.activation,
            "inverse": self.inverse,
            "orders": self._how_orders,
            "order_seed": self.order_seed,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def extra_repr(self) -> str:
        own = self.config() | {"univariate": self.univariate}
        return ", ".join(f"{key}={value!r}" for key, value in own.items() if key not in ("dtype", "orders") and value)


def _normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) (...) in float64."""
    return -0.5 * z.square().sum(-1, dtype=torch.float64) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


def load(directory: str | Path, device: torch.device | str | None = None) -> MAF:
    """The flow that ``flow.save(directory)`` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is truncated or not a flow's.
    """
    stored = _files.read_config(Path(directory))
    if stored.get("model") != "MAF":
        raise ValueError(f"load: model must be MAF, got {stored.get('model')!r} in {directory}")
    arguments = dict(stored["config"])
    try:
        arguments["dtype"] = _DTYPES[arguments["dtype"]]
        arguments["univariate"] = from_config(arguments["univariate"])
        _files.check_sizes(MAF, arguments, stored["config"], Path(directory))
        flow = MAF(**arguments, device=device)
    except _files.WRONG as error:
        raise ValueError(f"load: config.json must describe a MAF, got {directory}: {error!r}") from None
    return flow.load(directory)
