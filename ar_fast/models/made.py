"""MADE: an autoencoder that is masked according to an ordering."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from .. import functional, heads, orderings
from .._integers import is_integer
from .._philox import philox_uniform
from .._structure import building, nearly, starts
from .._vocabulary import MLP_ACTIVATIONS
from ..freezing import Kept
from ..interop import sequential
from ..networks import MaskedNetwork, check_degrees, check_hidden_features, even_degrees, gathered, sharing
from ._context import add_context
from ._ranks import check_agreement
from .base import AutoregressiveModel
from .ensemble import Ensemble
from .sampling import Request, Rows, Sampler

__all__ = ["MADE"]

# The counter of the random numbers that make orders: no layer has this index.
_ORDER = 2**32 - 1


class MADE(MaskedNetwork, AutoregressiveModel):
    r"""A masked autoencoder for distribution estimation.

    .. math::
        h_l = f\big((W_l \odot M_l) h_{l-1} + b_l\big), \quad h_0 = x \text{ by position}, \quad
        \theta = (W_{L+1} \odot M_{L+1}) h_L + b_{L+1} \text{ by position}

    A hidden unit of degree e sees the variables at positions 0 ... e-1 and those units of the previous layer whose
    degree is at most e. The outputs at position p, the parameters of the head, see the units of degree at most p. A
    variable of a Categorical head has one input column for each category (one of them is 1, the others are 0); any
    other variable has one column for its value. A context is added to the first layer through context_weight. Weights
    are stored by position, and units by ascending degree.

    With n_masks > 1 the same weights are used with several sets of masks: set k has its own random degrees, and order
    number k modulo n_orders. One set is in use at a time. Train with another one in every batch (:meth:`next_mask`) and
    evaluate one, or the mean probability of all: :meth:`ensemble`. Weights are then stored by variable, and units are
    not sorted.

    With ``direct``, inputs and outputs are also connected directly: theta += (W_D . M_D) x, where the outputs at
    position p see the variables at positions 0 ... p-1.

    With ``residual``, all hidden layers have the same width and degrees: a first layer, then two layers per block,

    .. math::
        h = (W_1 \odot M_1) x + b_1, \quad
        h \leftarrow h + W_{2j+1} f\big(W_{2j} f(h) + b_{2j}\big) + b_{2j+1}, \quad
        \theta = (W_{L+1} \odot M_{L+1}) f(h) + b_{L+1}

    (the W of the blocks are masked too). These are the blocks of ResMADE and of nflows' MADE without batch
    normalisation, dropout and context in the blocks; like ResMADE and unlike nflows, there is an f before the outputs.

    Args:
        event_shape: shape of one event, an int or several; D is the product.
        hidden_features: units of each hidden layer, 1 to 16 layers; with residual an odd number of equal layers.
        activation: "relu", "sigmoid", "tanh", "elu", "softplus", "silu", "gelu" or "leaky_relu".
        degrees: "even" spreads the degrees of each hidden layer evenly over 1 ... D-1. "random" draws them from that
            range, but not below the lowest degree of the previous layer. Or the degrees of each layer's units, in
            0 ... D-1 and in any order. With residual all layers have the same degrees. With a context degrees are in
            0 ... D-1, and each hidden layer has a unit of degree 0, which sees only the context, since the outputs at
            position 0 see it only through such units; "even" and "random" change the lowest degree to 0 if needed.
        degree_seed: 0 ... 2^63 - 1, of random degrees and orders, which are the same on every machine.
        n_masks: how many sets of masks the model has; more than one requires random degrees or several orders.
        n_orders: how many orders they have, at most n_masks: the first is ``order``, the others are random.
        direct: connect inputs and outputs directly.
        residual: add the output of every two hidden layers after the first to their input.
        head: None is heads.Bernoulli().
        order: (D) integers; None is ``orderings.raster(event_shape)``.
        context_features: C; 0 is no context.
        validate_args: check values; see :class:`AutoregressiveModel`.
        device: device of the parameters.
        dtype: dtype of the parameters: float32, float64, bfloat16 or float16.

    Attributes:
        degrees: for each hidden layer the degrees of its units, ascending; in the order of storage if n_masks > 1.
        mask_index: the set of masks in use, 0 ... n_masks - 1.
        changes: what :meth:`from_autoencoder` changed; None for any other model.

    Raises:
        ValueError: for an argument that breaks a rule above.

    Source: Germain, Gregor, Murray, Larochelle, "MADE: masked autoencoder for distribution estimation", ICML 2015,
    sections 4.1 (masks, direct connections), 4.2 (several layers), 4.3 (several orders) and 4.4 (several sets of
    masks); residual: Nash, Durkan, "Autoregressive energy machines", ICML 2019 (ResMADE).

    Example:
        >>> model = MADE(784, hidden_features=[500])
        >>> x = model.sample(16, seed=0)
        >>> x.shape, model.log_prob(x).shape
        (torch.Size([16, 784]), torch.Size([16]))
    """

    changes: list[str] | None = None

    def __init__(
        self,
        event_shape: int | Sequence[int],
        hidden_features: Sequence[int],
        activation: str = "relu",
        *,
        degrees: str | Sequence[Tensor | Sequence[int]] = "even",
        degree_seed: int = 0,
        n_masks: int = 1,
        n_orders: int = 1,
        direct: bool = False,
        residual: bool = False,
        head: heads.Head | None = None,
        order: Tensor | Sequence[int] | None = None,
        context_features: int = 0,
        validate_args: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            event_shape,
            head=head,
            order=order,
            context_features=context_features,
            validate_args=validate_args,
            device=device,
        )
        hidden_features = check_hidden_features("MADE", hidden_features)
        if activation not in MLP_ACTIVATIONS:
            names = ", ".join(MLP_ACTIVATIONS)
            raise ValueError(f"MADE: activation must be one of {names}, got {activation!r}")
        self.hidden_features = hidden_features
        self.activation = activation
        self.residual = residual
        if residual and (len(hidden_features) % 2 == 0 or len(set(hidden_features)) > 1):
            raise ValueError(
                "MADE: hidden_features must be an odd number of equal sizes with residual, the first layer and two for "
                f"each block, got {hidden_features}"
            )
        self._check_masks(degrees, degree_seed, n_masks, n_orders)
        self.degree_seed, self.n_masks, self.n_orders = int(degree_seed), int(n_masks), int(n_orders)
        self.mask_index = 0
        self._by_variable = n_masks > 1
        self._how_degrees: Any = degrees
        if not isinstance(degrees, str):
            with building():
                self._how_degrees = check_degrees("MADE", degrees, hidden_features, self.variables)
            if residual and not all(torch.equal(layer, self._how_degrees[0]) for layer in self._how_degrees):
                raise ValueError("MADE: degrees must be the same in all layers with residual, got different ones")
            lowest = [int(layer.min()) for layer in self._how_degrees]
            if context_features and max(lowest) > 0:
                raise ValueError(
                    "MADE: degrees must have a 0 in every hidden layer with context_features, since by units of degree "
                    f"0 alone the outputs at position 0 see the context, got layers whose lowest degrees are {lowest}"
                )
        #: (n_orders, D) on the CPU if there are several orders, else None.
        self._orders = None
        with building():
            self.degrees = self._degrees_of(0)
            if n_orders > 1:
                self._orders = self._make_orders()
        units = [sum(self.head.inputs(self.variables)), *hidden_features, self._out_rows]
        self._make_layers(units, direct, context_features, device, dtype)
        self._build()
        self.reset_parameters()

    @classmethod
    def from_autoencoder(
        cls,
        module: nn.Sequential,
        event_shape: int | Sequence[int],
        *,
        order: Tensor | Sequence[int] | None = None,
        head: heads.Head | None = None,
        degrees: str | Sequence[Tensor | Sequence[int]] = "even",
        degree_seed: int = 0,
        n_masks: int = 1,
        n_orders: int = 1,
        validate_args: bool | None = None,
    ) -> Self:
        """A MADE with the layers of an ordinary autoencoder and its weights, masked.

        It computes the parameters that the autoencoder would compute with W . M instead of each W. Its weights are
        copies of the same dtype on the same device. Masks take away a part of what the autoencoder learned: train on.

        The model's ``changes`` has a sentence for each change: masked weights, degrees given to units, units sorted by
        degree, biases that were missing, modules that were left out, a last Sigmoid that became the head.

        Args:
            module: an nn.Sequential (it may be nested) of two or more nn.Linear with the same activation between them:
                ReLU, Sigmoid, Tanh, ELU, Softplus, SiLU, GELU or LeakyReLU, with torch's default arguments. nn.Flatten,
                and nn.Dropout in eval mode, are left out. With a Bernoulli head a Sigmoid may end it.
            event_shape: as in the constructor, like everything below. The first layer must take one input for each
                variable (with a Categorical head one for each category), and the last layer must return the parameters
                of the head, both by variable.
            order: (D) integers.
            head: None is heads.Bernoulli().
            degrees: the degrees of the units in module's order, in any order; or "even" or "random", ascending.
            degree_seed: seed of random degrees and orders.
            n_masks: how many sets of masks.
            n_orders: how many orders they have.
            validate_args: check values.

        Raises:
            ValueError: for another kind of module, for sizes that do not fit the event and its head, and as in the
                constructor.

        Example:
            >>> from torch import nn
            >>> autoencoder = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6), nn.Sigmoid())
            >>> model = MADE.from_autoencoder(autoencoder, 6)
            >>> print(model.changes[-1])
            The last Sigmoid became the head, whose parameters are logits.
        """
        return sequential.from_autoencoder(
            cls,
            module,
            event_shape,
            order=order,
            head=head,
            degrees=degrees,
            degree_seed=degree_seed,
            n_masks=n_masks,
            n_orders=n_orders,
            validate_args=validate_args,
        )

    @staticmethod
    def _check_masks(degrees: object, degree_seed: int, n_masks: int, n_orders: int) -> None:
        if isinstance(degrees, str) and degrees not in ("even", "random"):
            raise ValueError(f"MADE: degrees must be 'even', 'random' or those of each layer, got {degrees!r}")
        if not is_integer(degree_seed) or not 0 <= degree_seed < 2**63:
            raise ValueError(f"MADE: degree_seed must be an integer in 0 ... 2^63 - 1, got {degree_seed!r}")
        for name, given in (("n_masks", n_masks), ("n_orders", n_orders)):
            if not is_integer(given) or given < 1:
                raise ValueError(f"MADE: {name} must be a positive integer, got {given!r}")
        if n_orders > n_masks:
            raise ValueError(f"MADE: n_orders must be at most n_masks = {n_masks}, got {n_orders}")
        if n_masks > 1 and n_orders == 1 and degrees != "random":
            raise ValueError(
                f"MADE: n_masks must be 1 unless degrees are 'random' or n_orders is more than 1, got {n_masks}"
            )

    def _make_orders(self) -> Tensor:
        first = torch.arange(self.variables) if self._order is None else self._order
        uniform = [self._uniform(_ORDER, index, self.variables) for index in range(1, self.n_orders)]
        return torch.stack([first, *(numbers.argsort(stable=True) for numbers in uniform)])

    def _uniform(self, stream: int, index: int, count: int) -> Tensor:
        return philox_uniform(self.degree_seed, torch.arange(count), torch.tensor(stream), slot=index)

    def _degrees_of(self, index: int) -> list[Tensor]:
        """The degrees of the hidden layers in set ``index`` of the masks, ascending if there is only one set."""
        if not isinstance(self._how_degrees, str):
            return self._how_degrees
        lowest, highest = 0 if self.context_features else min(1, self.variables - 1), self.variables - 1
        degrees: list[Tensor] = []
        for layer, units in enumerate(self.hidden_features):
            if self._how_degrees == "even":
                own = even_degrees(units, lowest, highest)
            elif self.residual and degrees:
                own = degrees[0]
            else:
                # A unit whose degree is lower than all degrees of the previous layer would see nothing.
                below = int(degrees[-1].min()) if degrees else lowest
                own = below + (self._uniform(layer, index, units) * (highest - below + 1)).long()
            if self.context_features:
                # The outputs at position 0 see the context only through units of degree 0.
                own[own.argmin()] = 0
            degrees.append(own if self._by_variable else own.sort().values)
        return degrees

    def use_mask(self, index: int) -> Self:
        """Switches to set ``index`` of the masks, 0 ... n_masks - 1, and its order. Returns the model.

        Raises:
            ValueError: if there is no such set.

        Example:
            >>> model = MADE(6, hidden_features=[20], degrees="random", n_masks=4, n_orders=2)
            >>> model.use_mask(3).mask_index
            3
        """
        if not is_integer(index) or not 0 <= index < self.n_masks:
            raise ValueError(f"MADE: index must be that of one of {self.n_masks} sets of masks, got {index!r}")
        self.mask_index = int(index)
        self._build()
        return self

    def next_mask(self) -> Self:
        """Switches to the next set of masks; the first follows the last. Returns the model.

        It counts and draws nothing: ranks of ``torch.distributed`` that call it in every step use the same set. If they
        do not, the later rank raises, here or when it trains (in eager mode), before any rank waits for another.

        Raises:
            RuntimeError: if another rank uses another set.
        """
        self.use_mask((self.mask_index + 1) % self.n_masks)
        self._turn += 1
        check_agreement(self, "mask_index", self._turn, self.mask_index)
        return self

    def with_mask(self, index: int) -> Self:
        """The model with set ``index`` of the masks and shared parameters: training one trains the other.

        Raises:
            ValueError: if there is no such set.
        """
        other = self._copy()
        other.layers = nn.ModuleList(sharing(layer) for layer in self.layers)
        if self.direct is not None:
            other.direct = sharing(self.direct)
        return other.use_mask(index)

    def ensemble(self) -> Ensemble:
        """The equal mixture of all sets of masks with shared parameters: its log_prob is the log of their mean.

        Example:
            >>> model = MADE(6, hidden_features=[20], degrees="random", n_masks=4, n_orders=2)
            >>> model.ensemble().log_prob(torch.zeros(3, 6)).shape
            torch.Size([3])
        """
        return Ensemble([self.with_mask(index) for index in range(self.n_masks)])

    #: How often next_mask was called.
    _turn = 0

    #: What :func:`ar_fast.frozen` keeps: the sorted model.
    _kept: Kept | None = None

    def _copy(self) -> Self:
        """Another model object with the same parameters, buffers and modules."""
        other = copy.copy(self)
        other._kept = None
        other._buffers, other._modules = dict(self._buffers), dict(self._modules)
        other._parameters = dict(self._parameters)
        return other

    def _sorted(self) -> Self:
        """A model with only the set of masks in use, its weights by position and its units by ascending degree.

        The sampler needs this order. The weights are copies, which do not follow later changes.
        """
        places = [self._places(index) for index in range(len(self.layers) + 1)]
        other = self._copy()
        other._by_variable, other.degrees = False, [layer.sort().values for layer in self.degrees]
        other._orders = None
        other.layers = nn.ModuleList(
            gathered(layer, own, below)
            for layer, (below, own) in zip(self.layers, itertools.pairwise(places), strict=True)
        )
        if self.direct is not None:
            other.direct = gathered(self.direct, places[-1], places[0])
        if self.context_weight is not None:
            other.context_weight = nn.Parameter(self.context_weight.detach()[places[1]], requires_grad=False)
        other._build()
        return other

    def _places(self, index: int) -> Tensor:
        """For value ``index`` (the columns, the hidden layers, the outputs): where its sorted elements are stored."""
        return getattr(self, f"places_{index}")

    def _derive(self) -> dict[str, Tensor | None]:
        """Computes where the columns and outputs of each variable are stored; gives the layers their masks."""
        if self._orders is not None:
            self._order = self._orders[self.mask_index % self.n_orders]
        if self._by_variable:
            self.degrees = self._degrees_of(self.mask_index)
        every = torch.arange(self.variables)
        order = every if self._order is None else self._order
        counts = [self.counts] * self.variables if isinstance(self.counts, int) else self.counts
        inputs, outputs = torch.tensor(self.head.inputs(self.variables)), torch.tensor(counts)
        # The variables in the order of storage, and their positions.
        stored, positions = (every, order.argsort()) if self._by_variable else (order, every)
        own_inputs = inputs[stored]
        degrees = [
            (positions + 1).repeat_interleave(own_inputs),
            *self.degrees,
            positions.repeat_interleave(outputs[stored]),
        ]
        self._set_masks(degrees)
        derived = super()._derive()
        for index, layer_degrees in enumerate(self.degrees):
            ends = torch.searchsorted(layer_degrees.sort().values, every, right=True)
            derived[f"unit_ends_{index}"] = ends.to(torch.int32)
        if self._by_variable:
            derived |= {f"places_{index}": of_value.argsort(stable=True) for index, of_value in enumerate(degrees)}
        # Offsets by position; None if all variables have one column, or the same number of outputs.
        encoded = bool((inputs > 1).any())
        # Where each output by variable is stored.
        shift = starts(outputs[order])[:-1][order.argsort()] - starts(outputs)[:-1]
        own = torch.arange(int(outputs.sum())) + shift.repeat_interleave(outputs)
        return derived | {
            "orders": self._orders,
            "in_offsets": starts(inputs[order]) if encoded else None,
            "out_offsets": None if isinstance(self.counts, int) else starts(outputs[order]),
            "column_offsets": starts(own_inputs) if encoded else None,
            "out_rows": None if self._order is None or self._by_variable else own,
        }

    def _decisive(self) -> dict[str, Tensor]:
        """All orders instead of the one of the set of masks in use, and which set that is."""
        own = super()._decisive() if self.orders is None else {"orders": self.orders}
        if self._by_variable:
            own["mask_in_use"] = torch.tensor(self.mask_index, device=self.device)
        return own

    def _take_decisive(self, given: dict[str, Tensor]) -> None:
        super()._take_decisive(given)
        index, orders = self.mask_index, self._orders
        if "mask_in_use" in given:
            index = self._check_index(given["mask_in_use"])
        if "orders" in given and not nearly(given["orders"], self._orders):
            orders = self._check_orders(given["orders"])
        if index != self.mask_index or orders is not self._orders:
            self.mask_index, self._orders = index, orders
            self._build()

    def _check_index(self, given: Tensor) -> int:
        index = given.item() if given.numel() == 1 else -1
        if index != int(index) or not 0 <= index < self.n_masks:
            raise ValueError(f"mask_in_use must be that of one of {self.n_masks} sets of masks, got {given.tolist()}")
        return int(index)

    def _check_orders(self, given: Tensor) -> Tensor:
        if given.shape != self._orders.shape:
            raise ValueError(f"orders must have shape {tuple(self._orders.shape)}, got {tuple(given.shape)}")
        with building():
            return torch.stack([orderings.check(order, self.variables).cpu() for order in given])

    def _unsaved_structure(self) -> list[Any]:
        """The degrees of all sets of masks: "even" and "random" might mean others in another version."""
        with building():
            return [[layer.tolist() for layer in self._degrees_of(index)] for index in range(self.n_masks)]

    def _check_loaded(self, tensors: dict[str, Tensor]) -> None:
        super()._check_loaded(tensors)
        if "orders" in tensors:
            self._check_orders(tensors["orders"])
        if "mask_in_use" in tensors:
            self._check_index(tensors["mask_in_use"])

    @property
    def _out_rows(self) -> int:
        return self.counts * self.variables if isinstance(self.counts, int) else sum(self.counts)

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(inputs) of zero, as in torch.nn.Linear; the means of mixtures are spread out."""
        for layer in self._terms:
            layer.reset_parameters()
        self._spread_mixtures()
        if self.context_weight is not None:
            bound = 1 / math.sqrt(self.context_features)
            nn.init.uniform_(self.context_weight, -bound, bound)

    def config(self) -> dict[str, Any]:
        base = self._base_config()
        own = {
            "hidden_features": self.hidden_features,
            "activation": self.activation,
            "degrees": self._how_degrees
            if isinstance(self._how_degrees, str)
            else [layer.tolist() for layer in self._how_degrees],
            "degree_seed": self.degree_seed,
            "n_masks": self.n_masks,
            "n_orders": self.n_orders,
            "direct": self.direct is not None,
            "residual": self.residual,
        }
        return {"event_shape": base.pop("event_shape"), **own, **base}

    def _as_stored(self, x: Tensor) -> Tensor:
        return x if self._by_variable else self._by_position(x, 1)

    def _columns(self, x: Tensor) -> Tensor:
        """x by variable -> (B, R_in) as stored."""
        stored = self._as_stored(x)
        if self.column_offsets is None:
            return stored.to(self.dtype)
        return self._encoded(stored, self.column_offsets, self.dtype)

    def _parameters_as_stored(self, x: Tensor, context: Tensor | None) -> Tensor:
        """x by variable -> (B, R_out) as stored."""
        if self._by_variable and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            check_agreement(self, "mask_index", self._turn, self.mask_index)
        return self._outputs(self._columns(x), context).to(self.compute_dtype)

    def _parameters_of(self, x: Tensor, context: Tensor | None) -> Tensor:
        parameters = self._parameters_as_stored(x, context)
        return parameters if self.out_rows is None else parameters.index_select(1, self.out_rows)

    def _log_prob(self, x: Tensor, context: Tensor | None, per_variable: bool) -> Tensor:
        if not isinstance(self.counts, int):
            log_prob = self.head.encoded_log_prob(self._parameters_of(x, context), x)
        else:
            # The order does not matter for a sum.
            parameters = self._parameters_as_stored(x, context).unflatten(1, (self.variables, -1))
            log_prob = self.head.encoded_log_prob(parameters, self._as_stored(x))
            if per_variable and self.order is not None and not self._by_variable:
                log_prob = log_prob.index_select(1, self.order.argsort())
        return log_prob if per_variable else log_prob.sum(1, dtype=torch.float64).to(self.compute_dtype)

    # State.tensors: the columns by position, the context's part of the first layer's pre-activations, then the values
    # of each layer of the program except the last. A unit is appended when the last variable that it sees is known.

    def _begin(self, batch: torch.Size, context: Tensor | None) -> tuple[Tensor, ...]:
        units, dtype = self.hidden_features[0], self.compute_dtype
        if context is None:
            share = torch.zeros(*batch, units, dtype=dtype, device=self.device)
        else:
            share = F.linear(context, self.context_weight).to(dtype)
            if self._by_variable:
                share = share[..., self._places(1)]
        return self._grow((share[..., :0], share, *[share[..., :0]] * (len(self._program) - 1)), 0)

    def _append(self, tensors: tuple[Tensor, ...], position: int, value: Tensor) -> tuple[Tensor, ...]:
        columns = value.unsqueeze(-1)
        offsets = self.in_offsets
        if offsets is not None and (categories := int(offsets[position + 1] - offsets[position])) > 1:
            columns = heads.base.one_hot(value, categories, self.compute_dtype)
        columns = torch.cat([tensors[0], columns.to(tensors[0].dtype)], -1)
        return self._grow((columns, *tensors[1:]), position + 1)

    def _grow(self, tensors: tuple[Tensor, ...], known: int) -> tuple[Tensor, ...]:
        if known == self.variables:
            return tensors
        columns, share, *layers = tensors
        for index, ends in enumerate(self._unit_ends):
            start, end = layers[index].shape[-1], int(ends[known])
            if end > start:
                new = self._units(index, start, end, (columns, *layers))
                if index == 0:
                    new = new + share[..., start:end]
                layers[index] = torch.cat(
                    [layers[index], self._activate(new) if self._program[index].activated else new], -1
                )
        return (columns, share, *layers)

    def _next_parameters(self, tensors: tuple[Tensor, ...], position: int) -> Tensor:
        if self.out_offsets is not None:
            start, end = self.out_offsets[position : position + 2].tolist()
        else:
            start, end = position * self.counts, (position + 1) * self.counts
        columns, _, *layers = tensors
        return self._units(len(self._program) - 1, start, end, (columns, *layers))

    def _sampler(self, request: Request) -> Sampler:
        if self._by_variable:
            kept = self._kept
            own = self._sorted() if kept is None else kept.get([*self.parameters(), self.places_0], self._sorted)
            return own._sampler(request)
        units = sum(self.hidden_features)
        if self.residual:
            units = self.hidden_features[0] * (len(self._program) - 1)
        features = self.layers[0].in_features + units
        first, *after_first = self.layers

        def begin(rows: Rows) -> tuple[Tensor, dict[str, Any]]:
            state = torch.zeros(rows.count, features, dtype=self.compute_dtype, device=self.device)
            bias = first.bias
            if rows.context is not None:
                bias = add_context(bias.to(self.compute_dtype), rows.context.to(self.dtype), self.context_weight)
            biases = iter([bias, *(layer.bias for layer in after_first)])
            none = bias.new_empty(0)
            return state, {"biases": [next(biases) if layer.sources else none for layer in self._program]}

        step = functools.partial(
            functional.masked_mlp_sample,
            weights=[layer.weight for layer in self._terms],
            extents=[layer.mask.extents for layer in self._terms],
            unit_ends=self._unit_ends,
            program=self._program,
            variables=self.variables,
            order=self.order,
            in_offsets=self.in_offsets,
            out_offsets=self.out_offsets,
            activation=self.activation,
            **self._head_arguments(self.order),
        )
        return Sampler(features, begin, step)

    def _set_output_bias(self, parameters: Tensor) -> None:
        bias = self.layers[-1].bias
        bias[slice(None) if self.out_rows is None else self.out_rows] = parameters.flatten().to(bias.dtype)
