"""One autoregressive transform of a flow: a masked network computes the parameters of univariate transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from .. import functional, orderings
from .._structure import SavedStructure, building, follow_loaded, nearly
from ..conditioners.conditioner import AddContext, Conditioner, Elementwise, Masked, Schedule
from ..conditioners.implicit import graph_needed, inverted
from ..conditioners.stepping import Incremental, Rows, rows_of_a_call
from ..conditioners.stepping import Univariate as UnivariateInverse
from ..models._context import add_context
from ..networks import MaskedNetwork, even_degrees
from .univariate import Univariate

__all__ = ["AutoregressiveTransform", "through_all"]

# Up to this many units the op that multiplies whole matrices is fastest.
_SMALL = 128


class AutoregressiveTransform(SavedStructure, MaskedNetwork):
    r"""u = f(x), each variable by an increasing function whose parameters depend on the variables before it.

    .. math:: u_i = f(x_i; \theta_i), \quad \theta_i = \text{network}(x_j \text{ before } x_i, \text{context})

    The network is that of :class:`ar_fast.models.MADE`, with degrees that are spread evenly.

    Args:
        features: D.
        hidden_features: units of each hidden layer.
        univariate: f.
        activation: by its name in :func:`ar_fast.functional.masked_linear`.
        order: (D) integers, order[p] = index of the variable at position p; None is 0 ... D-1.
        context_features: C; 0 is no context.
        device: device of the parameters.
        dtype: float32 or float64.

    Example:
        >>> from ar_fast.flows import Affine, AutoregressiveTransform
        >>> transform = AutoregressiveTransform(3, [8], Affine())
        >>> x = torch.randn(5, 3)
        >>> u, log_det = transform(x)
        >>> bool((transform.inverse(u)[0] - x).abs().max() < 1e-4)
        True
    """

    order: Tensor | None
    residual = False

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int],
        univariate: Univariate,
        activation: str = "relu",
        *,
        order: Tensor | Sequence[int] | None = None,
        context_features: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.features, self.context_features = features, context_features
        self.hidden_features, self.univariate, self.activation = list(hidden_features), univariate, activation
        self.small = max(self.features, *self.hidden_features) <= _SMALL
        self._made: Incremental | None = None
        self.register_load_state_dict_post_hook(follow_loaded)
        units = [features, *self.hidden_features, features * univariate.parameters]
        self._make_layers(units, False, context_features, device, dtype)
        with building():
            self._set_masks(
                [
                    torch.arange(features) + 1,
                    *self._degrees(),
                    torch.arange(features).repeat_interleave(univariate.parameters),
                ]
            )
        self._take_order(order)
        self.reset_parameters()

    def _degrees(self) -> list[Tensor]:
        lowest, degrees = 0 if self.context_features else min(1, self.features - 1), []
        for units in self.hidden_features:
            own = even_degrees(units, lowest, self.features - 1)
            if self.context_features:
                # The first variable's parameters see the context only through units of degree 0.
                own[0] = 0
            degrees.append(own)
        return degrees

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(inputs) of zero, as in torch.nn.Linear."""
        for layer in self.layers:
            layer.reset_parameters()
        if self.context_weight is not None:
            bound = 1 / math.sqrt(self.context_features)
            nn.init.uniform_(self.context_weight, -bound, bound)

    def _take_order(self, order: Tensor | Sequence[int] | None) -> None:
        positions = range(self.features)
        with building():
            order = None if order is None else orderings.check(order, self.features).cpu()
            self._order = None if order is None or order.tolist() == list(positions) else order
            back = None if self._order is None else self._order.argsort()
            degrees, every = self._degrees(), torch.arange(self.features)
            ends = [torch.searchsorted(own, every, right=True).to(torch.int32) for own in degrees]
            derived = {f"unit_ends_{index}": own for index, own in enumerate(ends)}
            if self.small:
                derived |= self._dense()
        self._set_derived({"order": self._order, "back": back, **derived}, self._home())

    def _home(self) -> torch.device:
        return self.layers[0].weight.device

    def _decisive(self) -> dict[str, Tensor]:
        return {} if self.order is None else {"order": self.order}

    def _take_decisive(self, given: dict[str, Tensor]) -> None:
        if "order" in given and not nearly(given["order"], self._order):
            self._take_order(given["order"])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u = f(x).

        Args:
            x: (*batch, D).
            context: (R, C), where R is the last dimension of batch.

        Returns:
            u (*batch, D), and log|det du/dx| (*batch) in float64.
        """
        if self.small:
            return through_all([self], x, context)
        self._follow(self._home())
        order, back, batch, own = self.order, self.back, x.shape[:-1], self.univariate
        columns = x if order is None else x.index_select(-1, order)
        raw = self._outputs(columns, context).reshape(batch.numel(), self.features * own.parameters)
        columns = columns.reshape(batch.numel(), self.features)
        u, log_det = functional.univariate_transform(columns, raw, own.head, own.constants)
        u = u if back is None else u.index_select(-1, back)
        return u.reshape(x.shape), log_det.double().reshape(batch)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.small:
            self._set_derived(self._dense(), self._home())
        return self

    def _dense(self) -> dict[str, Tensor]:
        """The masks in the dtype of the weights, which multiply faster than others."""
        with building():
            return {
                f"dense_{index}": layer._mask_with_values.to_dense().cpu().to(layer.weight.dtype)
                for index, layer in enumerate(self.layers)
            }

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x with f(x) = u, in the arithmetic of one evaluation of the network; differentiable once.

        Args:
            u: (*batch, D).
            context: (R, C), where R is the last dimension of batch.

        Returns:
            x (*batch, D), and log|det dx/du| (*batch) in float64, or None where a graph is recorded: then it is minus
            that of ``forward(x)``, which has a graph.
        """
        self._follow(self._home())
        y = (u if self.order is None else u.index_select(-1, self.order)).reshape(u.shape[:-1].numel(), self.features)
        rows, tensors = None, self._tensors()
        if context is not None:
            own = len(context)
            shared = own == 1 or own == len(y)
            rows = Rows(context, None if shared else torch.arange(len(y), device=y.device) % own)
        if graph_needed(y, context, *tensors):
            x, log_det = inverted(self, y, rows, tensors), None
        else:
            x, log_det = self.without_graph(y, rows, tensors)
            log_det = log_det.reshape(u.shape[:-1])
        x = x.reshape(u.shape)
        return (x if self.back is None else x.index_select(-1, self.back)), log_det

    # What ar_fast.conditioners needs to differentiate the inverse. Here variables are by position.

    def _tensors(self) -> list[Tensor | None]:
        """The parameters in the order of the conditioner's steps."""
        found: list[Tensor | None] = []
        for index, layer in enumerate(self.layers):
            found += [layer.weight, layer.bias]
            if index == 0 and self.context_weight is not None:
                found += [self.context_weight, None]
        return found

    @property
    def steps(self) -> Incremental:
        """The network, one variable at a time."""
        if self._made is None:
            steps: list[Any] = []
            for index in range(len(self.layers)):
                steps.append(Masked(len(steps), f"layers.{index}"))
                if index == 0 and self.context_weight is not None:
                    steps.append(AddContext(len(steps), "context_weight"))
                if index < len(self.layers) - 1:
                    steps.append(Elementwise(len(steps), "_activate"))
            own = Conditioner(tuple(steps), self.features, self.univariate.parameters, self.context_features)
            with building():
                layers = iter(self.layers)
                masks = [next(layers).mask.to_dense().cpu() if isinstance(step, Masked) else None for step in steps]
                self._made = Incremental(own, self, Schedule(own, masks))
        return self._made

    def __getstate__(self) -> dict[str, Any]:
        # The steps refer to this object, and copies make their own.
        return {**self.__dict__, "_made": None}

    def without_graph(self, y: Tensor, context: Rows | None, tensors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """y (B, D) -> x (B, D), and log|det dx/dy| (B) in float64."""
        weights, biases = list(tensors[::2]), list(tensors[1::2])
        if context is not None:
            biases[:2] = [add_context(biases[0], context.values, weights.pop(1))]
        size = rows_of_a_call(self.features + sum(self.hidden_features), y)
        found = [
            self._inverted(y[start : start + size], context, weights, biases, slice(start, start + size))
            for start in range(0, max(1, len(y)), size)
        ]
        x, log_det = zip(*found, strict=True)
        return (x[0], log_det[0]) if len(found) == 1 else (torch.cat(x), torch.cat(log_det))

    def _inverted(
        self, y: Tensor, context: Rows | None, weights: list[Tensor], biases: list[Tensor], rows: slice
    ) -> tuple[Tensor, Tensor]:
        first, *rest = biases
        if context is not None:
            first = Rows(first, context.index).of(rows)
            first = first[0] if len(first) == 1 else first
        x, log_det, _ = functional.masked_mlp_sample(
            y.new_zeros(len(y), self.features + sum(self.hidden_features)),
            weights,
            [first, *rest],
            [layer.mask.extents for layer in self.layers],
            self._unit_ends,
            program=self._program,
            seed=0,
            variables=self.features,
            given=y.contiguous(),
            activation=self.activation,
            head=self.univariate.head,
            constants=self.univariate.constants,
        )
        return x, log_det

    def univariate_at(self, x: Tensor) -> UnivariateInverse:
        """The inverse near x to first order, which has its derivatives at x: those of f give them."""
        x = x.detach()

        def inverse(y: Tensor, parameters: Tensor, indices: Tensor) -> Tensor:
            u, log_slopes = self.univariate.forward(x, parameters)
            return x + (y - u) * (-log_slopes.detach()).exp()

        return inverse

    def extra_repr(self) -> str:
        return f"features={self.features}, univariate={self.univariate!r}, context_features={self.context_features}"


def through_all(
    transforms: Sequence[AutoregressiveTransform], x: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Transforms with small networks of the same structure, one after the other in one call of the op.

    The other arguments and the results are those of :meth:`AutoregressiveTransform.forward`.
    """
    # Small flows take some hundred microseconds, so nothing is done that is not needed.
    first, batch, rows = transforms[0], x.shape[:-1], x.shape[:-1].numel()
    columns, device = x if x.dim() == 2 else x.reshape(rows, x.shape[-1]), first._home()
    # One context for all rows is part of the first bias; else each row has its own.
    shared = context is not None and len(context) == 1
    reads = context is not None and not shared
    if reads and len(context) != rows:
        context = context.repeat(rows // max(1, len(context)), 1)
    weights, masks, biases, orders, back = [], [], [], [], None
    for index, own in enumerate(transforms):
        own._follow(device)
        order = own.order
        if index > 0:
            orders.append(order if back is None else back if order is None else back[order])
        elif order is not None:
            columns = columns.index_select(-1, order)
        back = own.back
        for number, layer in enumerate(own.layers):
            weights.append(layer._parameters["weight"])
            biases.append(layer._parameters["bias"])
            masks.append(getattr(own, f"dense_{number}"))
            if number == 0 and shared:
                biases[-1] = F.linear(context, own.context_weight, biases[-1])[0]
            elif number == 0 and reads:
                weights.append(own.context_weight)
                biases.append(None)
                masks.append(None)
    layers = len(first.layers)
    sources = [(0, functional.MlpLayer.CONTEXT) if reads else (0,), *((number,) for number in range(1, layers))]
    u, log_det = functional.masked_mlp_flow(
        columns,
        weights,
        masks,
        biases,
        context=context if reads else None,
        program=[functional.MlpLayer(own, activated=index + 1 < layers) for index, own in enumerate(sources)],
        orders=[*orders, back],
        activation=first.activation,
        transform=first.univariate.head,
        constants=first.univariate.constants,
    )
    return (u, log_det.double()) if x.dim() == 2 else (u.reshape(x.shape), log_det.double().reshape(batch))
