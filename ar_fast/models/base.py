"""What all autoregressive models share: the interface, sampling, one variable at a time, files."""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .. import heads, orderings
from .._integers import is_integer
from .._progress import progress_bar
from .._structure import SavedStructure, building, first_parameter, follow_loaded, nearly, starts, version_of
from .._vocabulary import compute_dtype
from ..nn import MaskedLinear
from . import _files, _inputs
from ._calls import in_calls
from ._standardize import Standardization, in_data_units
from ._state import State
from .distribution import AutoregressiveDistribution
from .sampling import Request, Sampler, Sampling, draw, make_request

__all__ = ["AutoregressiveModel", "State"]


class AutoregressiveModel(SavedStructure, nn.Module, abc.ABC):
    r"""A density over events of D variables, one conditional at a time.

    .. math:: p(x) = \prod_p p(x_{\mathrm{order}[p]} \mid x_{\mathrm{order}[0]}, \dots, x_{\mathrm{order}[p-1]})

    Args:
        event_shape: shape of one event, an int or several; D is the product.
        head: the distribution of the conditionals; None is heads.Bernoulli().
        order: (D) integers, order[p] = flat index of the variable at position p. None is
            ``orderings.raster(event_shape)``: for (C, H, W) pixel by pixel, the channels of a pixel next to each other.
        context_features: C, how many numbers every conditional depends on in addition; 0 is none.
        validate_args: check values (support, NaN). None checks on the CPU only, as in torch.distributions; True checks
            on CUDA too, which costs a synchronisation; nothing checks while compiling or capturing a graph.
        device: device of the order; a model puts its parameters there too.
    """

    order: Tensor | None
    #: Whether weights belong to variables and not to positions, so that they also make a model of another order.
    _any_order: ClassVar[bool] = False
    #: The heads that a model accepts.
    _heads: ClassVar[tuple[type[heads.Head], ...]] = (heads.Head,)
    #: Whether any variables may be known, not only a prefix of the order.
    _conditions_on_any_subset: ClassVar[bool] = False

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        head: heads.Head | None = None,
        order: Tensor | Sequence[int] | None = None,
        context_features: int = 0,
        validate_args: bool | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = _inputs.event_shape(self._name, event_shape)
        self.variables = math.prod(self.event_shape)
        self.head = heads.Bernoulli() if head is None else head
        if not isinstance(self.head, self._heads):
            names = " or ".join(f"heads.{kind.__name__}" for kind in self._heads)
            raise ValueError(f"{self._name}: head must be {names}, got {head!r}")
        #: K of each variable, or one K if all have the same.
        self.counts = self.head.counts(self.variables)
        if not is_integer(context_features) or context_features < 0:
            raise ValueError(f"{self._name}: context_features must be an integer >= 0, got {context_features!r}")
        self.context_features = context_features = int(context_features)
        self.validate_args = validate_args
        with building():
            if order is None:
                raster = orderings.raster(self.event_shape)
                order = None if torch.equal(raster, torch.arange(self.variables)) else raster
            else:
                order = orderings.check(order, self.variables)
        #: The order on the CPU, whatever the device of ``order``.
        self._order = None if order is None else order.cpu()
        self.register_load_state_dict_post_hook(follow_loaded)
        self._real = torch.tensor([size is None for size in self.head.sizes(self.variables)], device="cpu")
        self.standardization = Standardization(self.variables, device) if bool(self._real.any()) else None

    # What a model must define. Here x is (B, D), context is (B, C) or None; real variables are in standardised units.

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Draws new initial parameters, from torch's default generator."""

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """The model's arguments as JSON holds them, except the device and the order."""

    @abc.abstractmethod
    def _parameters_of(self, x: Tensor, context: Tensor | None) -> Tensor:
        """(B, R_out) in the compute dtype. Here and below x is encoded by head.encode."""

    @abc.abstractmethod
    def _log_prob(self, x: Tensor, context: Tensor | None, per_variable: bool) -> Tensor:
        """(B), summed in float64, or (B, D); in the compute dtype."""

    def _multiply_adds(self) -> int:
        """About how many the evaluation of one event takes."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _log_prob_observed(self, x: Tensor, observed: Tensor, context: Tensor | None) -> Tensor:
        """(B, D), whose sum is log p of the variables that observed (B, D) marks; 0 elsewhere, where x holds zeros.

        A model of one fixed order can only do this for a prefix of its order. A model that was trained with missing
        variables overrides this.
        """
        if not torch.compiler.is_compiling():
            _inputs.check_prefix(
                self,
                ("observed", "missing"),
                observed,
                "has no marginal of any other set of variables: put those that may be missing last in the order, "
                "or train a model with variables missing, DeepNADE",
            )
        return self._log_prob(x, context, True).masked_fill(~observed, 0.0)

    @abc.abstractmethod
    def _begin(self, batch: torch.Size, context: Tensor | None) -> tuple[Tensor, ...]:
        """State.tensors when no variable is known; context is (*batch, C)."""

    @abc.abstractmethod
    def _append(self, tensors: tuple[Tensor, ...], position: int, value: Tensor) -> tuple[Tensor, ...]:
        """State.tensors once the variable at position has taken value (*batch)."""

    @abc.abstractmethod
    def _next_parameters(self, tensors: tuple[Tensor, ...], position: int) -> Tensor:
        """(*batch, K), the parameters of the variable at position, an int."""

    @abc.abstractmethod
    def _sampler(self, request: Request) -> Sampler:
        """The sampler of the request's events; work that depends on neither rows nor positions is done here, once."""

    @abc.abstractmethod
    def _set_output_bias(self, parameters: Tensor) -> None:
        """Takes (D, K) by variable, or (R_out) if variables differ in K, in float64."""

    # Structure: what follows from the arguments and the order. A model calls _build after it has made its parameters.

    def _derive(self) -> dict[str, Tensor | None]:
        """The derived tensors by the names of their attributes; they are made on the CPU."""
        # For a per_variable head, by variable: the kinds, and how many inputs each variable has.
        mixed = self.head.kinds(self.variables)
        inputs = None if mixed is None else torch.tensor(self.head.inputs(self.variables))
        return {"order": self._order, "head_kinds": mixed, "input_counts": inputs}

    def _build(self) -> None:
        with building():
            derived = self._derive()
        self._set_derived(derived, self.device)

    def _home(self) -> torch.device:
        return self.device

    def _follow(self, device: torch.device) -> None:
        if self._derived_on != device:
            super()._follow(device)
            self._order_seen = self.order, version_of(self.order)

    def _settle(self) -> None:
        """Before the structure is used: moves it to the parameters' device, and checks an order that was written."""
        self._follow(self.device)
        if torch.compiler.is_compiling():
            return
        order, version = self._order_seen
        if self.order is not order or version_of(order) != version:
            self._take_order(self.order)

    def _take_order(self, order: Tensor | Sequence[int] | None) -> None:
        """Gives the model another order.

        Raises:
            ValueError: if order is not a permutation.
        """
        with building():
            self._order = None if order is None else orderings.check(order, self.variables).cpu()
        self._build()

    def _decisive(self) -> dict[str, Tensor]:
        return {} if self.order is None else {"order": self.order}

    def _take_decisive(self, given: dict[str, Tensor]) -> None:
        if "order" in given and not nearly(given["order"], self._order):
            self._take_order(given["order"])

    def _head_arguments(self, index: Tensor | None = None) -> dict[str, Any]:
        """The head as every op takes it; ``index`` (D) is the variable at each place of the op's offsets."""
        kinds = self.head_kinds
        if kinds is not None and index is not None:
            kinds = kinds.index_select(0, index)
        return {"head": self.head.kind, "levels": self.head.levels, "head_kinds": kinds}

    def _input_offsets(self, index: Tensor | None = None) -> Tensor | None:
        """(D + 1), the first input of each variable of a per_variable head; None elsewhere. ``index`` as above."""
        counts = self.input_counts
        if counts is None:
            return None
        return starts(counts if index is None else counts.index_select(0, index))

    def _encoded(self, x: Tensor, offsets: Tensor, dtype: torch.dtype, observed: Tensor | None = None) -> Tensor:
        """(B, R_in) in the given dtype: categories one-hot, others by value, zeros where not observed.

        x and observed are (B, D) in the order of ``offsets`` (D + 1), the first input of each variable.
        """
        gathers = (counts := offsets.diff()) > 1
        own, factor = heads.base.chosen(torch.where(gathers, x.detach(), 0), counts, dtype)
        value = torch.where(gathers, factor, x.to(dtype))
        value = value if observed is None else torch.where(observed, value, 0.0)
        row = offsets[:-1] + own
        return value.new_zeros(x.shape[0], sum(self.head.inputs(self.variables))).scatter(1, row, value)

    def _parameters_by(self, index: Tensor | None, parameters: Tensor) -> Tensor:
        """(D, K), or (R_out) if K differs, by variable -> (R_out) in the order of ``index`` (D)."""
        if index is None:
            return parameters.flatten()
        if parameters.dim() == 2:
            return parameters.index_select(0, index).flatten()
        own = parameters.split(self.counts)
        return torch.cat([own[variable] for variable in index.tolist()])

    # The interface.

    @property
    def device(self) -> torch.device:
        return first_parameter(self).device

    @property
    def dtype(self) -> torch.dtype:
        return first_parameter(self).dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of head parameters, log_prob and samples: float64 for float64 parameters, else float32."""
        return compute_dtype(self.dtype)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The parameters of every conditional.

        Args:
            x: (*batch, *event_shape); bool, integer, or floating of the model's dtype or compute dtype.
            context: (*context_batch, C) if the model has context_features; context_batch are the last dimensions of
                batch, as in the shapes that ``sample`` returns. In the model's dtype or compute dtype; under autocast
                context and x may also have autocast's dtype, as the output of a network before the model has.

        Returns:
            (*batch, D, K) in the compute dtype, by flat index of the variable; (*batch, R_out) if variables differ in
            K, with the parameters of a variable side by side. Parameters of real variables are in standardised units
            if the model is standardised.

        Raises:
            ValueError: for a wrong shape, dtype or device; under validate_args for values outside the support.
        """
        batch, rows, context_rows = _inputs.flatten(self, x, context)
        parameters = self._parameters_of(rows, context_rows)
        shape = (self.variables, self.counts) if isinstance(self.counts, int) else (sum(self.counts),)
        return parameters.reshape(*batch, *shape)

    def log_prob(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        per_variable: bool = False,
        observed: Tensor | None = None,
    ) -> Tensor:
        """The log-probability in nats; for real variables the log-density, in the units of x even if standardised.

        Args:
            x: (*batch, *event_shape); bool, integer, or floating of the model's dtype or compute dtype.
            context: (*context_batch, C) if the model has context_features; context_batch are the last dimensions of
                batch.
            per_variable: return the logarithm of each conditional instead of their sum.
            observed: bool, (*event_shape), preceded by none or some of the last dimensions of batch: which variables
                are observed. The rest are missing, whatever x holds for them (even NaN), and the result is the exact
                log-probability of the observed variables alone, 0 for each missing one. The observed variables must be
                a prefix of the order, so that the missing ones sum out of the product.

        Returns:
            (*batch), summed in float64, or the shape of x; in the compute dtype.

        Raises:
            ValueError: for a wrong shape, dtype or device; for observed variables that are not a prefix of the order;
                under validate_args for values outside the support.
        """
        if observed is not None:
            x, observed = _inputs.observed_only(self, x, observed)
        batch, rows, context_rows = _inputs.flatten(self, x, context)
        if observed is None:

            def evaluate(rows: Tensor, context: Tensor | None) -> Tensor:
                return self._log_prob(rows, context, per_variable)

            log_prob = in_calls(self, self._multiply_adds, evaluate, rows, context_rows)
            log_prob = in_data_units(self.standardization, log_prob, per_variable)
            return log_prob.reshape(x.shape if per_variable else batch)
        log_prob = self._log_prob_observed(rows, observed, context_rows)
        log_prob = in_data_units(self.standardization, log_prob, True).masked_fill(~observed, 0.0)
        if per_variable:
            return log_prob.reshape(x.shape)
        return log_prob.sum(1, dtype=torch.float64).to(self.compute_dtype).reshape(batch)

    @torch.no_grad()
    def sample(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_index: int = 0,
        given: Tensor | None = None,
        known: Tensor | None = None,
        clamp: bool = False,
        temperature: float = 1.0,
        return_log_prob: bool = False,
        progress: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draws events; all positions together cost the arithmetic of one evaluation.

        Sample number first_index + i is the same whatever n is: ``sample(100, seed=s)`` equals ``sample(40, seed=s)``
        followed by ``sample(60, seed=s, first_index=40)``, bit for bit.

        Args:
            n: how many, or a shape of samples.
            context: (*context_batch, C) if the model has context_features; n events are drawn for each.
            seed: 0 ... 2^63 - 1. None takes one number from generator.
            generator: the seed is drawn from it; None is torch's default generator. Not used if seed is given.
            first_index: number of the first sample.
            given: values of known variables, (*event_shape), preceded by none or some of the last dimensions of
                (*n, *context_batch). What it holds for other variables is ignored.
            known: bool, of such a shape too: which variables are taken from given and not drawn. They must be a prefix
                of the order, so that the samples are draws from the conditional distribution.
            clamp: allow any known variables. They are fixed to given, and every other variable is drawn given only the
                variables before it: this is clamping, not conditional sampling.
            temperature: > 0; the head defines its effect (for Bernoulli it divides the logits).
            return_log_prob: also return the log-probability of the drawn variables, at temperature 1.
            progress: show a progress bar, on a terminal or in a notebook.

        Returns:
            (*n, *context_batch, *event_shape) in the compute dtype, or int64 for categories and levels (but not within
            a heads.PerVariable); with return_log_prob also (*n, *context_batch).

        Raises:
            ValueError: for a wrong argument; for known variables that are not a prefix of the order, unless clamp.
        """
        request = make_request(self, n, context, seed, generator, first_index, given, known, clamp, temperature)
        sampler, total = self._sampler(request), request.rows * self.variables
        with progress_bar(total=total, unit="variable", unit_scale=True, show=progress) as bar:
            events, log_prob = draw(request, sampler, bar.update)
        samples = events.reshape(request.batch + self.event_shape)
        return (samples, log_prob.to(self.compute_dtype).reshape(request.batch)) if return_log_prob else samples

    @torch.no_grad()
    def sampling(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_index: int = 0,
        given: Tensor | None = None,
        known: Tensor | None = None,
        clamp: bool = False,
        temperature: float = 1.0,
    ) -> Sampling:
        """Starts a draw of the same samples in steps; arguments and errors are those of ``sample``.

        It is for events of very many variables: look at what is drawn already, stop, and continue later, in another
        process too. docs/large_images.md has an example.
        """
        request = make_request(self, n, context, seed, generator, first_index, given, known, clamp, temperature)
        return Sampling(request, self._sampler(request), slice(0, request.rows))

    def begin(self, batch: int | Sequence[int] = (), context: Tensor | None = None) -> State:
        """Starts an evaluation one variable at a time; differentiable.

        Args:
            batch: the batch shape; with a context it can be left out.
            context: (*batch, C) if the model has context_features.

        Returns:
            The state whose ``parameters``, (*batch, K), are those of the first variable of the order.

        Example:
            >>> from ar_fast.models import NADE
            >>> model = NADE(3, hidden_features=4)
            >>> state = model.begin(2)
            >>> while state.parameters is not None:
            ...     state = model.next(state, torch.ones(2))
            >>> state.position
            3
        """
        self._settle()
        shape = _inputs.sample_shape(self._name, "batch", batch)
        _inputs.check_context(self, context)
        if context is not None:
            if shape and shape != context.shape[:-1]:
                raise ValueError(
                    f"{self._name}: context must have shape (*batch, C) with batch {tuple(shape)}, "
                    f"got {tuple(context.shape)}"
                )
            shape, context = context.shape[:-1], context.to(self.dtype)
        return self._state(0, self._begin(shape, context))

    def next(self, state: State, value: Tensor) -> State:
        """The state once ``state.variable`` has taken ``value``, (*batch); ``state`` itself stays usable."""
        if state.parameters is None:
            raise ValueError(f"{self._name}: state must have a variable left, got all {self.variables} known")
        batch = state.parameters.shape[:-1]
        _inputs.check_tensor(self, "value", value)
        if value.shape != batch:
            raise ValueError(f"{self._name}: value must have shape {tuple(batch)}, got {tuple(value.shape)}")
        _inputs.check_values(self, "value", value, variable=state.variable)
        value = self.head.of(state.variable).encode(_inputs.own_dtype(self, value), self.compute_dtype)
        if self.standardization is not None and self._real[state.variable]:
            value = self.standardization(value, self.compute_dtype, state.variable)
        return self._state(state.position + 1, self._append(state.tensors, state.position, value))

    def _state(self, position: int, tensors: tuple[Tensor, ...]) -> State:
        if position == self.variables:
            return State(position, None, None, tensors)
        return State(position, self._variable(position), self._next_parameters(tensors, position), tensors)

    def _variable(self, position: int) -> int:
        return position if self._order is None else int(self._order[position])

    def _by_position(self, x: Tensor, dim: int) -> Tensor:
        return x if self.order is None else x.index_select(dim, self.order)

    def in_order(self, order: Tensor | Sequence[int]) -> Self:
        """The model in another order, with shared parameters: training one trains the other.

        Use it for another order in every batch, or for ensembles of orders. Models with weights by position refuse.

        Args:
            order: (D) integers, order[p] = flat index of the variable at position p.

        Raises:
            ValueError: if order is not a permutation, or the model's weights belong to one order only.

        Example:
            >>> from ar_fast.models import NADE
            >>> model = NADE(3, hidden_features=4)
            >>> other = model.in_order([2, 0, 1])
            >>> other.in_weight is model.in_weight
            True
        """
        if not self._any_order:
            raise ValueError(
                f"{self._name}: in_order is for models whose weights belong to variables, as NADE's; "
                f"those of {self._name} belong to the positions of one order, so make one model for each order"
            )
        other = copy.copy(self)
        other._take_order(order)
        return other

    def distribution(self, context: Tensor | None = None) -> AutoregressiveDistribution:
        """The model as a torch.distributions.Distribution, whose batch_shape is that of the context."""
        _inputs.check_context(self, context)
        return AutoregressiveDistribution(self, context)

    def to_torch(self) -> torch.nn.Module:
        """log_prob as a module that needs torch alone; see :func:`ar_fast.export.to_torch`."""
        from ..export import to_torch

        return to_torch(self)

    @torch.no_grad()
    def standardize(self, data: Tensor | None = None, *, mean: Tensor | None = None, std: Tensor | None = None) -> Self:
        """Makes the model compute with (x - mean) / std of its real variables; x and samples keep their units.

        Real variables are those of a GaussianMixture. Its scales are cut off below e^-7 of these units, and its
        components start near 0 with scale 1: without standardisation, other data train slowly or not at all. log_prob
        is still the log-density of x itself: it includes -log(std). Changing the units later changes what the trained
        weights mean, so call this before training. Mean and std are saved and loaded with the model.

        Args:
            data: (*batch, *event_shape), on any device. The mean and std of each real variable are taken over the batch
                (divided by n); the values of other variables are ignored.
            mean: (*event_shape), with std instead of data; ignored where a variable is not real.
            std: (*event_shape), positive.

        Raises:
            ValueError: if the model has no real variable; for a wrong shape; for a NaN or infinity in a real variable;
                for a real variable with zero variance.

        Example:
            >>> from ar_fast.models import RNADE
            >>> data = 1000 + 50 * torch.randn(200, 3)
            >>> model = RNADE(3, hidden_features=8).standardize(data)
            >>> model.sample(2, seed=0).mean() > 500
            tensor(True)
        """
        if self.standardization is None:
            raise ValueError(f"{self._name}: standardize is for real variables, got the head {self.head!r}")
        mean, std = _inputs.statistics(self, data, mean, std)
        self.standardization.set(mean, std)
        return self

    @torch.no_grad()
    def _spread_mixtures(self) -> None:
        """Spreads out the output bias of a mixture head: components that start alike stay alike for a long time."""
        parameters = self.head.initial_parameters(self.variables)
        if parameters is not None and self.device.type != "meta":
            self._set_output_bias(parameters.to(self.device))

    @torch.no_grad()
    def initialize_from_mean(self, mean: Tensor) -> None:
        """Sets the output bias so that training starts near independent variables with this mean, (*event_shape)."""
        if mean.shape != self.event_shape:
            raise ValueError(f"{self._name}: mean must have shape {tuple(self.event_shape)}, got {tuple(mean.shape)}")
        mean = mean.reshape(-1).to(self.device, torch.float64)
        if self.standardization is not None:
            mean = self.standardization(mean, torch.float64)
        self._set_output_bias(self.head.parameters_from_mean(mean))

    def count_parameters(self) -> int:
        """How many numbers the density depends on; masked weights do not count.

        Example:
            >>> from ar_fast.models import FVSBN
            >>> FVSBN(3).count_parameters()
            6
        """
        return sum(parameter.numel() for parameter in self.parameters()) - self._masked_parameters()

    def _masked_parameters(self) -> int:
        layers = [module for module in self.modules() if isinstance(module, MaskedLinear)]
        return sum(layer.weight.numel() - layer.mask.count() for layer in layers)

    def save(self, directory: str | Path) -> None:
        """Writes model.safetensors and config.json into directory, which is created if needed."""
        _files.save(self, Path(directory))

    def load(self, directory: str | Path) -> Self:
        """Reads what ``save`` wrote into this model, and returns it. Nothing is unpickled.

        ``ar_fast.models.load`` also makes the model.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file is truncated or not a model's, or of a model with other arguments. This model does
                not change then.
        """
        _files.load(self, Path(directory))
        return self

    def _unsaved_structure(self) -> list[Any] | None:
        """Structure that is neither in a file's tensors nor fully in ``config``; files hold a fingerprint of it."""

    def _check_loaded(self, tensors: dict[str, Tensor]) -> None:
        """Raises ValueError if buffers, whose shapes were checked already, hold values that are not allowed."""
        if "order" in tensors:
            orderings.check(tensors["order"], self.variables)

    def extra_repr(self) -> str:
        config = self.config() | {"event_shape": tuple(self.event_shape)}
        shown = {key: value for key, value in config.items() if key not in ("head", "dtype") and value not in (None, 0)}
        return ", ".join(f"{key}={value!r}" for key, value in shown.items())

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _base_config(self) -> dict[str, Any]:
        return {
            "event_shape": list(self.event_shape),
            "head": self.head.config(),
            "context_features": self.context_features,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
