"""DeepNADE: one network trained for every ordering of the variables at once."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .. import functional, heads
from .._integers import integers
from .._structure import starts, unmodified
from .._vocabulary import ACTIVATIONS
from ..freezing import Kept
from ..heads.base import chosen, is_whole
from . import _inputs
from ._context import add_context
from ._standardize import in_data_units
from .base import AutoregressiveModel
from .ensemble import Ensemble
from .sampling import Request, Rows, Sampler

__all__ = ["DeepNADE"]

# With several hidden layers, positions are computed in blocks of about this many hidden numbers.
_BLOCK_ELEMENTS = 2**22
# A compiled batch can have any size, so it is cut into as many blocks of positions as one of this many rows.
_COMPILED_ROWS = 128
# With several hidden layers, this many positions are drawn before progress is told.
_LAYERED_POSITIONS = 64


class DeepNADE(AutoregressiveModel):
    r"""An orderless NADE: one network that gives p(x_i | any set of the other variables).

    .. math::
        h_1 = f\big(c + U z + \sum_{j \in O} (x_j W_j + M_j)\big), \quad h_l = f(A_l h_{l-1} + a_l), \quad
        p(x_i \mid x_O) = p_{\mathrm{head}}(x_i; b_i + V_i h_L)

    with O the observed variables, W = in_weight, M = mask_weight, c = in_bias, U = context_weight, z = context, A, a =
    layers, V = out_weight, b = out_bias, f = activation. It is an ordinary network whose inputs are x, with zeros where
    it is not observed, and the mask of the observed variables. With a Categorical head variable j adds the row of W
    that belongs to its category.

    ``loss`` trains it for all orderings at once. ``log_prob`` evaluates it in one ordering or in an ensemble of them.
    ``sample`` takes any known subset: it puts those variables first, and then draws the others in order. Each ordering
    is a different distribution; they agree only as far as training made them agree.

    Args:
        event_shape: shape of one event, an int or several; D is the product.
        hidden_features: units of each hidden layer. With one layer, evaluating and drawing an event are incremental
            and cost O(D H) as in NADE; with more, the further layers run D times.
        head: None is heads.Bernoulli().
        order: (D) integers, the ordering that is used unless another is given; None is
            ``orderings.raster(event_shape)``.
        context_features: C; 0 is no context.
        validate_args: check values; see :class:`AutoregressiveModel`.
        device: device of the parameters.
        dtype: dtype of the parameters: float32, float64, bfloat16 or float16.

    Raises:
        ValueError: for an argument that breaks a rule above.

    Source: Uria, Murray, Larochelle, "A deep and tractable density estimator", ICML 2014.

    Example:
        >>> model = DeepNADE((28, 28), hidden_features=[500])
        >>> x = model.sample(16, seed=0)
        >>> loss = model.loss(x).mean()
        >>> orders = torch.stack([torch.randperm(784) for _ in range(4)])
        >>> model.log_prob(x).shape, model.log_prob(x, order=orders).shape
        (torch.Size([16]), torch.Size([16]))
        >>> known = torch.rand(28, 28) < 0.5
        >>> model.sample(3, given=x[0], known=known, seed=1).shape
        torch.Size([3, 28, 28])
    """

    _any_order = True
    _conditions_on_any_subset = True
    _kept: Kept | None = None  # what ar_fast.frozen keeps: the weights that draw with one hidden layer

    def __init__(
        self,
        event_shape: int | Sequence[int],
        hidden_features: int | Sequence[int],
        activation: str = "relu",
        *,
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
        units = integers(hidden_features)
        if not units or min(units) < 1:
            raise ValueError(
                f"DeepNADE: hidden_features must be one or more positive integers, got {hidden_features!r}"
            )
        if activation not in ACTIVATIONS:
            names = ", ".join(ACTIVATIONS)
            raise ValueError(f"DeepNADE: activation must be one of {names}, got {activation!r}")
        self.hidden_features = units
        self.activation = activation
        self._gathers = isinstance(self.head, heads.Categorical)
        out_rows = self.counts * self.variables if isinstance(self.counts, int) else sum(self.counts)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        in_rows = sum(self.head.inputs(self.variables))
        self.in_weight = nn.Parameter(torch.empty(in_rows, units[0], **options))
        self.mask_weight = nn.Parameter(torch.empty(self.variables, units[0], **options))
        self.in_bias = nn.Parameter(torch.empty(units[0], **options))
        layers = (nn.Linear(below, above, **options) for below, above in itertools.pairwise(units))
        self.layers: Any = nn.ModuleList(layers)
        self.out_weight = nn.Parameter(torch.empty(out_rows, units[-1], **options))
        self.out_bias = nn.Parameter(torch.empty(out_rows, **options))
        self.context_weight = None
        if context_features:
            self.context_weight = nn.Parameter(torch.empty(units[0], context_features, **options))
        self._build()
        self.reset_parameters()

    def _derive(self) -> dict[str, Tensor | None]:
        counts = torch.tensor([self.counts] * self.variables if isinstance(self.counts, int) else self.counts)
        offsets = starts(counts)
        # If a variable selects rows, it has one for each of its values and a last row of zeros for "not observed".
        values = counts if self._gathers else torch.full_like(counts, 2)
        return super()._derive() | {
            "out_offsets": offsets,
            "values": values,
            "table_offsets": starts(values + 1),
            # The variable of each row of out_weight, and the number of the row within that variable.
            "row_variable": torch.arange(self.variables).repeat_interleave(counts),
            "row_index": torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(counts),
        }

    def reset_parameters(self) -> None:
        """Uniform weights within 1 / sqrt(inputs) of zero, zero biases; the means of mixtures are spread out."""
        inputs = 2 * self.variables + self.context_features
        fans = [(self.in_weight, inputs), (self.mask_weight, inputs), (self.out_weight, self.hidden_features[-1])]
        if self.context_weight is not None:
            fans.append((self.context_weight, self.context_features))
        for weight, fan in fans:
            nn.init.uniform_(weight, -1 / math.sqrt(fan), 1 / math.sqrt(fan))
        for layer in self.layers:
            layer.reset_parameters()
        nn.init.zeros_(self.in_bias)
        nn.init.zeros_(self.out_bias)
        self._spread_mixtures()

    def config(self) -> dict[str, Any]:
        base = self._base_config()
        own = {"hidden_features": self.hidden_features, "activation": self.activation}
        return {"event_shape": base.pop("event_shape"), **own, **base}

    # Training.

    def loss(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        observed: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""A random estimate of -log p(x) averaged over all orderings, from one pass of the network; differentiable.

        .. math::
            \frac{1}{D \, q(d)} \, \frac{D}{D - d + 1} \sum_{i \notin O} -\log p(x_i \mid x_O), \quad d \sim q,
            \quad O \text{ uniform among the sets of } d - 1 \text{ variables}

        with d in 1 ... D and O drawn anew for each event. The second factor is there because any of the D - d + 1
        remaining variables may be the next one of an ordering. In the paper q is uniform, and the first factor is 1.
        Here q(d) falls off as the square root of 1 / (D - d + 1): the expectation is the same, and this choice has the
        least variance, since the standard deviation of a sum over n variables grows with the square root of n.

        Args:
            x: (*batch, *event_shape), as ``log_prob`` takes it.
            context: (*context_batch, C) if the model has context_features.
            observed: bool, (*event_shape), preceded by none or some of the last dimensions of batch: False where x is
                missing. Missing variables are neither conditioned on nor predicted, and D counts only the others.
            generator: generator of the random sets; None is torch's default generator.

        Returns:
            (*batch) nats, summed in float64, in the compute dtype: minimise its mean.

        Source: Uria, Murray, Larochelle, ICML 2014, equation 9.
        """
        present = None
        if observed is not None:
            x, present = _inputs.observed_only(self, x, observed)
        batch, rows, context = _inputs.flatten(self, x, context)
        device = self.device if generator is None else generator.device
        keys = torch.rand(rows.shape, device=device, generator=generator).to(self.device)
        share = torch.rand(len(rows), 1, device=device, generator=generator).to(self.device)
        if present is not None:
            keys = keys.masked_fill(~present, 0.0)
        # Divided by the largest of D uniform numbers, the others are uniform too: every set of variables of one size is
        # equally likely to be below a threshold, and at most D - 1 variables are below it. No sorting is needed.
        seen = keys < (1 - share.square()) * keys.amax(1, keepdim=True)
        predicted = ~seen
        if present is not None:
            seen, predicted = seen & present, predicted & present

        hidden = self._hidden(self._pre_activation(rows, seen, self._in_bias(context)), self._layers())
        parameters = F.linear(hidden, self._compute(self.out_weight), self._compute(self.out_bias))
        terms = in_data_units(self.standardization, self._terms(parameters.to(self.compute_dtype), rows), True)
        terms = terms.masked_fill(~predicted, 0.0)
        left = predicted.sum(1)
        total = -terms.sum(1, dtype=torch.float64) * _weight(left, left + seen.sum(1))
        return total.to(self.compute_dtype).reshape(batch)

    def _pre_activation(self, x: Tensor, observed: Tensor, bias: Tensor) -> Tensor:
        """(B, H), the pre-activations of the first layer, by matrix products."""
        mask = observed.to(self.compute_dtype)
        if self.head_kinds is not None:
            inputs = self._encoded(x, self._input_offsets(), mask.dtype, observed)
        elif self._gathers:
            row, factor = chosen(x, self.out_offsets.diff(), mask.dtype)
            value = torch.where(observed, factor, mask)
            inputs = mask.new_zeros(x.shape[0], len(self.in_weight)).scatter(1, self.out_offsets[:-1] + row, value)
        else:
            inputs = torch.where(observed, x, 0.0).to(self.compute_dtype)
        return bias + inputs @ self._compute(self.in_weight) + mask @ self._compute(self.mask_weight)

    # Orderings.

    def log_prob(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        order: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
        observed: Tensor | None = None,
        per_variable: bool = False,
    ) -> Tensor:
        r"""The log-probability in nats, in one ordering or in an ensemble of them.

        Args:
            x: (*batch, *event_shape); bool, integer, or floating of the model's dtype or compute dtype.
            context: (*context_batch, C) if the model has context_features; context_batch are the last dimensions of
                batch.
            order: (D), one ordering; or (n, D), an ensemble: the average of the n probabilities,
                :math:`\log \frac{1}{n} \sum_o p(x; o)`, computed in float64. None is the model's order.
            observed: bool, (*event_shape), preceded by none or some of the last dimensions of batch: False where x is
                missing (whatever it holds). Any variables may be missing. The result is the log-probability of the
                observed ones: in any ordering they can come first, and the rest sums to one.
            per_variable: return the logarithm of each conditional instead of their sum (zero where not observed); for
                one ordering only.

        Returns:
            (*batch), summed in float64, or the shape of x; in the compute dtype.

        Raises:
            ValueError: for a wrong shape, dtype or device; under validate_args for values outside the support; for
                per_variable with an ensemble, which has no conditionals.
        """
        if order is None:
            return super().log_prob(x, context, per_variable=per_variable, observed=observed)
        orders = torch.as_tensor(order)
        if orders.dim() != 2:
            return self.in_order(orders).log_prob(x, context, per_variable=per_variable, observed=observed)
        if per_variable:
            raise ValueError(
                f"DeepNADE: per_variable must be False for an ensemble of {len(orders)} orderings: it has no "
                "conditionals of its own"
            )
        return Ensemble([self.in_order(one) for one in orders]).log_prob(x, context, observed=observed)

    # Evaluation.

    def _compute(self, weight: Tensor) -> Tensor:
        return weight.to(self.compute_dtype)

    def _in_bias(self, context: Tensor | None) -> Tensor:
        """(H), or (*batch, H) with a context (*batch, C), in the compute dtype."""
        bias = self._compute(self.in_bias)
        if context is None:
            return bias
        return F.linear(self._compute(context), self._compute(self.context_weight), bias).to(self.compute_dtype)

    def _terms(self, parameters: Tensor, x: Tensor) -> Tensor:
        """(B, D) nats; x is encoded by the head."""
        offsets = None if isinstance(self.counts, int) else self.out_offsets
        return functional.head_log_prob(parameters, x, offsets=offsets, **self._head_arguments())

    def _multiply_adds(self) -> int:
        return super()._multiply_adds() + (self.variables - 1) * sum(own.numel() for own in self.layers.parameters())

    def _log_prob(self, x: Tensor, context: Tensor | None, per_variable: bool) -> Tensor:
        terms = self._terms(self._parameters_of(x, context), x)
        return terms if per_variable else terms.sum(1, dtype=torch.float64).to(self.compute_dtype)

    def _log_prob_observed(self, x: Tensor, observed: Tensor, context: Tensor | None) -> Tensor:
        return self._terms(self._parameters_of(x, context, observed), x).masked_fill(~observed, 0.0)

    def _parameters_of(self, x: Tensor, context: Tensor | None, observed: Tensor | None = None) -> Tensor:
        if self.layers:
            return self._deep_parameters(x, self._in_bias(context), observed)
        x, structure = self._steps(x, observed)
        out = self._compute(self.out_weight), self._compute(self.out_bias)
        return functional.nade(
            x, structure.pop("in_weight"), self._in_bias(context), *out, activation=self.activation, **structure
        )

    def _steps(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        """The input and the arguments of a NADE that computes the same as the model.

        A variable that selects a row adds W + M at once, or zeros if it is not observed. For a real variable, the NADE
        has a further variable without parameters, whose value is 1 if the variable is observed, and which adds M. With
        a per_variable head all variables have a further one, and an unobserved category selects a row of zeros.
        """
        if self._gathers:
            x = self._categories(x)
            if observed is not None:
                x = torch.where(observed, x, self.values)
            structure = {
                "in_weight": self._table(),
                "in_offsets": self.table_offsets,
                "order": self.order,
                "out_offsets": self.out_offsets,
            }
            return x, structure
        mask = torch.ones_like(x, dtype=self.compute_dtype) if observed is None else observed.to(self.compute_dtype)
        x = self._categories(x.to(self.compute_dtype))
        if observed is not None:
            x = torch.where(observed, x, self._not_observed)
        return torch.cat([x, mask], 1), self._paired()

    def _categories(self, x: Tensor) -> Tensor:
        """x (B, D), and -1 in the place of what is no category: the row after those of a variable's categories is that
        of what is not observed."""
        counts = self.values if self._gathers else self.input_counts
        if counts is None:
            return x
        none = ~is_whole(x, counts)
        return torch.where(none if self._gathers else none & (counts > 1), -1, x)

    @property
    def _not_observed(self) -> Tensor:
        """The input of a variable that is not observed, () or (D): zero, or the number of the row of zeros."""
        counts = self.input_counts
        if counts is None:
            return torch.zeros((), dtype=self.compute_dtype, device=self.device)
        return torch.where(counts > 1, counts, 0).to(self.compute_dtype)

    def _paired(self) -> dict[str, Any]:
        """The arguments of a NADE over (x, mask), in which each variable is followed by its mask."""
        order = torch.arange(self.variables, device=self.device) if self.order is None else self.order
        none = self.out_offsets[-1:].expand(self.variables)
        weight, in_offsets = self._compute(self.in_weight), None
        if self.input_counts is not None:
            # A row of zeros follows the rows of a category's values.
            counts = self.input_counts
            rows = counts + (counts > 1)
            in_offsets = F.pad(torch.cat([rows, torch.ones_like(rows)]).cumsum(0), (1, 0))
            shift = (in_offsets[: self.variables] - self._input_offsets()[:-1]).repeat_interleave(
                counts, output_size=len(weight)
            )
            place = torch.arange(len(weight), device=weight.device) + shift
            most = len(weight) + sum(count > 1 for count in self.head.inputs(self.variables))
            weight = weight.new_zeros(most, weight.shape[1]).index_copy(0, place, weight)
        return {
            "in_weight": torch.cat([weight, self._compute(self.mask_weight)]),
            "in_offsets": in_offsets,
            "order": torch.stack([order, order + self.variables], 1).flatten(),
            "out_offsets": torch.cat([self.out_offsets, none]),
        }

    def _paired_head(self) -> dict[str, Any]:
        """The head of a NADE over (x, mask); the masks have no parameters, so their heads do not matter."""
        head = self._head_arguments()
        if self.head_kinds is not None:
            head["head_kinds"] = torch.cat([self.head_kinds, torch.zeros_like(self.head_kinds)])
        return head

    def _table(self) -> Tensor:
        """(values + 1 rows for each variable, H): what observing each value adds to the state, then a row of zeros."""
        weight, mask = self._compute(self.in_weight), self._compute(self.mask_weight)
        if not self._gathers:
            return torch.stack([mask, weight + mask, torch.zeros_like(mask)], 1).flatten(0, 1)
        rows = self.table_offsets[:-1].index_select(0, self.row_variable) + self.row_index
        added = weight + mask.index_select(0, self.row_variable)
        return added.new_zeros(len(added) + self.variables, added.shape[1]).index_copy(0, rows, added)

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each hidden layer after the first, in the compute dtype."""
        return [(self._compute(layer.weight), self._compute(layer.bias)) for layer in self.layers]

    def _hidden(self, pre_activation: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The last hidden layer from the pre-activations of the first; ``layers`` is what ``_layers`` returns."""
        hidden = ACTIVATIONS[self.activation](pre_activation)
        for weight, bias in layers:
            hidden = ACTIVATIONS[self.activation](F.linear(hidden, weight, bias))
        return hidden

    def _deep_parameters(self, x: Tensor, bias: Tensor, observed: Tensor | None) -> Tensor:
        """Runs the further layers once for each position, a block of positions at a time; the backward pass computes a
        block's hidden units again."""
        order = torch.arange(self.variables, device=self.device) if self.order is None else self.order
        most = max(self.counts) if isinstance(self.counts, list) else self.counts
        weight = self._compute(self.out_weight)
        # (D, most, H), where variables may have fewer parameters than most.
        at = self.row_variable, self.row_index
        weight = weight.new_zeros(self.variables, most, weight.shape[1]).index_put(at, weight)
        state = bias.expand(x.shape[0], -1)
        rows = _COMPILED_ROWS if torch.compiler.is_compiling() else max(1, x.shape[0])
        positions = max(1, _BLOCK_ELEMENTS // (rows * max(self.hidden_features)))
        # Read only once: under torch.func.functional_call the model has its original parameters again by the time the
        # backward pass recomputes a block.
        layers, inputs = self._layers(), (self._compute(self.in_weight), self._compute(self.mask_weight))
        check_unmodified = unmodified("DeepNADE: x and parameters", [x, *inputs, *itertools.chain(*layers)])

        def block(state: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            check_unmodified()
            added = self._added(x.index_select(1, index), index, *inputs)
            if observed is not None:
                added = added * observed.index_select(1, index).unsqueeze(-1)
            after = state.unsqueeze(1) + added.cumsum(1)
            hidden = self._hidden(torch.cat([state.unsqueeze(1), after[:, :-1]], 1), layers)
            parameters = torch.bmm(hidden.transpose(0, 1), weight.index_select(0, index).transpose(1, 2))
            return parameters.transpose(0, 1), after[:, -1]

        blocks = []
        for index in (order,) if positions >= self.variables else order.split(positions):
            # A checkpoint saves its inputs by hooks, which torch.func transforms and forward-mode AD do not allow.
            if torch.is_grad_enabled() and not functional.transformed():
                parameters, state = checkpoint(block, state, index, use_reentrant=False, preserve_rng_state=False)
            else:
                parameters, state = block(state, index)
            blocks.append(parameters)
        by_variable = torch.cat(blocks, 1).index_select(1, order.argsort())
        parameters = by_variable.to(self.compute_dtype)[:, self.row_variable, self.row_index]
        return parameters + self._compute(self.out_bias)

    def _added(
        self, x: Tensor, index: Tensor, in_weight: Tensor | None = None, mask_weight: Tensor | None = None
    ) -> Tensor:
        """(*batch, P, H): what observing the variables index (P) with values x (*batch, P) adds to the state. The
        weights are the model's, in the compute dtype if the caller has converted them."""
        weight = self._compute(self.in_weight) if in_weight is None else in_weight
        mask = (self._compute(self.mask_weight) if mask_weight is None else mask_weight).index_select(0, index)
        if self.input_counts is not None:
            counts = self.input_counts.index_select(0, index)
            row, factor = chosen(torch.where(counts > 1, x.detach(), 0), counts, self.compute_dtype)
            row = row + self._input_offsets().index_select(0, index)
            factor = torch.where(counts > 1, factor, x.to(self.compute_dtype))
            return factor.unsqueeze(-1) * F.embedding(row, weight) + mask
        if self._gathers:
            counts = self.out_offsets.diff().index_select(0, index)
            row, factor = chosen(x, counts, self.compute_dtype)
            return F.embedding(self.out_offsets.index_select(0, index) + row, weight) * factor.unsqueeze(-1) + mask
        return x.to(self.compute_dtype).unsqueeze(-1) * weight.index_select(0, index) + mask

    # One variable at a time.

    def _begin(self, batch: torch.Size, context: Tensor | None) -> tuple[Tensor, ...]:
        return (self._in_bias(context).expand(*batch, self.hidden_features[0]),)

    def _append(self, tensors: tuple[Tensor, ...], position: int, value: Tensor) -> tuple[Tensor, ...]:
        index = torch.tensor([self._variable(position)], device=self.device)
        return (tensors[0] + self._added(value.unsqueeze(-1), index).squeeze(-2),)

    def _next_parameters(self, tensors: tuple[Tensor, ...], position: int) -> Tensor:
        variable = self._variable(position)
        rows = slice(int(self.out_offsets[variable]), int(self.out_offsets[variable + 1]))
        hidden = self._hidden(tensors[0], self._layers())
        return F.linear(hidden, self._compute(self.out_weight[rows]), self._compute(self.out_bias[rows]))

    # Sampling. The known variables enter the state first, wherever they are in the order, so that every other variable
    # is drawn given all of them; when the order reaches a known variable, it adds nothing more.

    def _sampler(self, request: Request) -> Sampler:
        by_table = self._gathers or isinstance(self.head, heads.Bernoulli)
        nade, observes = None, request.known is not None
        if not self.layers or observes:
            make, kept = functools.partial(self._sampled_nade, by_table, observes), None if observes else self._kept
            nade = make() if kept is None else kept.get([*self.parameters(), self.order], make)

        def first_state(rows: Rows) -> Tensor:
            bias = self._compute(self.in_bias)
            if rows.context is not None:
                bias = add_context(bias, rows.context.to(self.dtype), self.context_weight)
            state = bias.expand(rows.count, -1).contiguous()
            return state if rows.known is None else self._state_given(state, rows.given, rows.known, nade, by_table)

        if self.layers:
            units = sum(self.hidden_features)
            return Sampler(units, lambda rows: (first_state(rows), {}), self._layered_op(), _LAYERED_POSITIONS)
        # The NADE of pairs has two variables for each variable of the model.
        each = 1 if by_table else 2
        op: Callable[..., Any] = functools.partial(functional.nade_sample, **nade)

        def begin(rows: Rows) -> tuple[Tensor, dict[str, Any]]:
            state, known, arguments = first_state(rows), rows.known, {}
            if known is not None:
                # The value that the op receives for a known variable adds nothing.
                nothing = self.values.to(state.dtype) if by_table else state.new_zeros(())
                arguments = {"given": nothing.expand(known.shape).contiguous(), "observed": (rows.given, known)}
            if each == 2:
                # The mask of each pair is known: 1, or 0 if the variable has been observed already.
                if known is None:
                    known = torch.zeros(rows.count, self.variables, dtype=torch.bool, device=state.device)
                given = torch.cat([self._not_observed.expand(known.shape), (~known).to(state.dtype)], 1)
                arguments |= {"given": given, "known": torch.cat([known, torch.ones_like(known)], 1)}
            return state, arguments

        def step(
            state: Tensor, *, start: int, stop: int, observed: tuple[Tensor, Tensor] | None = None, **arguments: Any
        ) -> tuple[Tensor, Tensor, Tensor]:
            values, log_prob, state = op(state, start=each * start, stop=each * stop, **arguments)
            values = values[:, ::each]
            if observed is not None:
                given, known = observed
                chunk = slice(start, stop) if self.order is None else self.order[start:stop]
                values = torch.where(known[:, chunk], given[:, chunk], values)
            return values, log_prob, state

        return Sampler(self.hidden_features[0], begin, step)

    def _sampled_nade(self, by_table: bool, observes: bool) -> dict[str, Any]:
        """The arguments of the NADE that draws with one hidden layer, or that observes the known variables."""
        if not by_table:
            structure = {**self._paired(), "variables": 2 * self.variables, **self._paired_head()}
        else:
            structure = {"order": self.order, "out_offsets": self.out_offsets, "variables": self.variables}
            structure |= self._head_arguments()
            if observes or self._gathers:
                structure |= {"in_weight": self._table(), "in_offsets": self.table_offsets}
            else:  # Nothing stays unobserved: two rows for each variable, without the row of zeros.
                mask = self._compute(self.mask_weight)
                table = mask.new_empty(self.variables, 2, mask.shape[1])
                table[:, 0] = mask
                torch.add(self._compute(self.in_weight), mask, out=table[:, 1])
                structure["in_weight"] = table.flatten(0, 1)
        outputs = {"out_weight": self._compute(self.out_weight), "out_bias": self._compute(self.out_bias)}
        return structure | outputs | {"activation": self.activation}

    def _state_given(self, state: Tensor, given: Tensor, known: Tensor, nade: dict[str, Any], by_table: bool) -> Tensor:
        """The state after the known variables are observed."""
        if by_table:
            own = torch.where(is_whole(given, self.values), given, -1.0)
            values = torch.where(known, own, self.values.to(given.dtype))
        else:
            own = self._categories(given)
            values = torch.cat([torch.where(known, own, self._not_observed), known.to(given.dtype)], 1)
        if self.head_kinds is None:
            nade = nade | {"head": "categorical", "levels": 0}
        # Here no variable has parameters: nothing is drawn, and no output is computed.
        nothing = {
            "out_weight": self._compute(self.out_weight)[:0, :1].expand(0, state.shape[1]),
            "out_bias": self._compute(self.out_bias)[:0],
            "out_offsets": torch.zeros(nade["variables"] + 1, dtype=torch.long, device=state.device),
        }
        all_known = torch.ones_like(values, dtype=torch.bool)
        return functional.nade_sample(state, given=values, known=all_known, seed=0, **(nade | nothing))[2]

    def _layered_op(self) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        """The op of more hidden layers, which runs all of them for every position."""
        offsets = None if isinstance(self.counts, int) else self.out_offsets
        return functools.partial(
            functional.deep_nade_sample,
            in_weight=self.in_weight,
            mask_weight=self.mask_weight,
            weights=[layer.weight for layer in self.layers],
            biases=[layer.bias for layer in self.layers],
            out_weight=self.out_weight,
            out_bias=self.out_bias,
            order=self.order,
            in_offsets=offsets if self._gathers else self._input_offsets(),
            out_offsets=offsets,
            activation=self.activation,
            **self._head_arguments(),
        )

    def _set_output_bias(self, parameters: Tensor) -> None:
        self.out_bias.copy_(parameters.flatten())


def _weight(left: Tensor, variables: Tensor) -> Tensor:
    """1 / (q n), float64, for n = ``left`` of D = ``variables``.

    n - 1 is Beta-binomial: D - 1 trials with a probability whose square root is uniform, which is Beta(1/2, 1). So
    q = Gamma(D) Gamma(n - 1/2) / (2 Gamma(n) Gamma(D + 1/2)).
    """
    n, d = left.clamp(min=1).double(), variables.clamp(min=1).double()
    return 2 / n * (n.lgamma() - (n - 0.5).lgamma() + (d + 0.5).lgamma() - d.lgamma()).exp()
