"""The sampling ops: one for each family of models whose variables are not tied and not recurrent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ._call import call

__all__ = [
    "MlpLayer",
    "armlp_sample",
    "deep_nade_sample",
    "fvsbn_sample",
    "masked_mlp_sample",
    "nade_sample",
]


def nade_sample(
    state: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    *,
    seed: int,
    variables: int | None = None,
    order: Tensor | None = None,
    in_offsets: Tensor | None = None,
    out_offsets: Tensor | None = None,
    activation_scale: Tensor | None = None,
    given: Tensor | None = None,
    known: Tensor | None = None,
    activation: str = "sigmoid",
    head: str = "bernoulli",
    levels: int = 0,
    head_kinds: Tensor | None = None,
    first_index: int = 0,
    start: int = 0,
    stop: int | None = None,
    temperature: float = 1.0,
    algorithm: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Draws the variables at positions start ... stop-1 of a NADE.

    .. math:: x_i \sim p_{\mathrm{head}}(\cdot; \theta_i), \quad i = \mathrm{order}[p]

    with the parameters of :func:`nade` and the uniform numbers of Philox at key seed and counter
    (first_index + row, variable, slot). csrc/kernels/head.h defines how a value is drawn from them, and what
    temperature does. A row's result does not depend on the other rows. The op has no gradient.

    Args:
        state: (B, H) in the compute dtype: the pre-activations at position start. At position 0 they are in_bias; for
            later positions they are what the previous call returned. Not modified.
        in_weight: (R_in, H): D rows, scaled by the drawn values, or a row for each category of each variable.
        out_weight: (R_out, H); each variable has as many rows as the head has parameters.
        out_bias: (R_out).
        seed: key of the random numbers.
        variables: D; None takes it from the offsets or order, else it is R_in.
        order: (D) int64, order[p] = variable at position p; None is 0 ... D-1.
        in_offsets: (D + 1) int64, the first in_weight row of each variable; None is R_in / D rows each.
        out_offsets: (D + 1) int64, the first out_weight row of each variable; None is R_out / D rows each. A variable
            without rows is an input only, and must be known.
        activation_scale: (D); None is 1.
        given: (B, D) in the compute dtype, by variable: the values of known variables.
        known: (B, D) bool, by variable: take the value from given and do not draw.
        activation: "sigmoid", "tanh" or "relu".
        head: "bernoulli", "categorical", "gaussian_mixture", "logistic_mixture" or "per_variable".
        levels: how many values a variable can take, for "logistic_mixture"; else 0.
        head_kinds: (D, 2) int64 by variable, for "per_variable": the number of each variable's head, 0 to 3 in the list
            above, and its levels; None elsewhere.
        first_index: sample index of row 0.
        start: first position.
        stop: the position after the last; None is D.
        temperature: > 0, changes the draw but not log_prob.
        algorithm: "auto" or the name of one path; see ``ar_fast.explain``.

    Returns:
        values (B, stop - start) by position in the compute dtype; log_prob (B) float64, nats of the drawn variables
        at temperature 1; the state (B, H) at position stop.

    Raises:
        RuntimeError: where a shape, dtype, device or range breaks a rule above.

    Source: Larochelle and Murray, AISTATS 2011; the random numbers: Salmon et al., SC 2011.

    Example:
        >>> weight = torch.zeros(3, 2)
        >>> values, log_prob, state = nade_sample(torch.zeros(1, 2), weight, weight, torch.zeros(3), seed=1)
        >>> values.shape, log_prob
        (torch.Size([1, 3]), tensor([-2.0794], dtype=torch.float64))
    """
    if variables is None:
        sizes = [len(offsets) - 1 for offsets in (in_offsets, out_offsets) if offsets is not None]
        variables = (sizes or [len(in_weight if order is None else order)])[0]
    structure = order, in_offsets, out_offsets, activation_scale, given, known, variables, activation
    draws = head, levels, head_kinds, seed, first_index, start, variables if stop is None else stop, temperature
    return call("nade_sample", state, in_weight, out_weight, out_bias, *structure, *draws, algorithm)


def deep_nade_sample(
    state: Tensor,
    in_weight: Tensor,
    mask_weight: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_weight: Tensor,
    out_bias: Tensor,
    *,
    seed: int,
    order: Tensor | None = None,
    in_offsets: Tensor | None = None,
    out_offsets: Tensor | None = None,
    given: Tensor | None = None,
    known: Tensor | None = None,
    activation: str = "relu",
    head: str = "bernoulli",
    levels: int = 0,
    head_kinds: Tensor | None = None,
    first_index: int = 0,
    start: int = 0,
    stop: int | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Draws the variables at positions start ... stop-1 of an orderless NADE of several hidden layers.

    .. math::
        h_1 = f(a_p), \quad h_l = f(A_l h_{l-1} + c_l), \quad x_i \sim p_{\mathrm{head}}(\cdot; b_i + V_i h_L), \quad
        a_{p+1} = a_p + x_i W_i + M_i, \quad i = \mathrm{order}[p]

    with W = in_weight, M = mask_weight, A, c = weights, biases, V, b = out_weight, out_bias, and the random numbers of
    :func:`nade_sample`. A known variable draws nothing and adds nothing: the state has it from the start. A row does
    not depend on the other rows. Nothing is differentiated.

    Args:
        state: (B, H_1) in the compute dtype: the pre-activations of the first layer at position start, with what is
            known; for later positions they are what the call up to there returned. Not modified.
        in_weight: (R_in, H_1): D rows, scaled by the drawn values, or a row for each category of each variable.
        mask_weight: (D, H_1).
        weights: of the layers after the first, (H_l, H_{l-1}) each, at most 16.
        biases: (H_l) each.
        out_weight: (R_out, H_L), for each variable as many rows as the head has parameters.
        out_bias: (R_out).
        seed: key of the random numbers.
        order: (D) int64, order[p] = variable at position p; None is 0 ... D-1.
        in_offsets: (D + 1) int64, the first in_weight row of each variable; None is R_in / D rows each.
        out_offsets: (D + 1) int64, the first out_weight row of each variable; None is R_out / D rows each.
        given: (B, D) in the compute dtype, by variable: the values of known variables.
        known: (B, D) bool, by variable: take given and do not draw.
        activation: "sigmoid", "tanh" or "relu".
        head: "bernoulli", "categorical", "gaussian_mixture", "logistic_mixture" or "per_variable".
        levels: how many values a variable has, for "logistic_mixture"; else 0.
        head_kinds: (D, 2) int64 by variable, for "per_variable", as :func:`nade_sample` takes it.
        first_index: sample index of row 0.
        start: first position.
        stop: the position after the last; None is D.
        temperature: > 0, changes the draw and leaves log_prob alone.

    Returns:
        values (B, stop - start) by position in the compute dtype; log_prob (B) float64, nats of the drawn variables
        at temperature 1; the state (B, H_1) at position stop.

    Raises:
        RuntimeError: where a shape, dtype, device or range breaks a rule above.

    Source: Uria, Murray, Larochelle, "A deep and tractable density estimator", ICML 2014.

    Example:
        >>> first, second = torch.zeros(3, 2), torch.zeros(4, 2)
        >>> layers = [second], [torch.zeros(4)]
        >>> values, log_prob, state = deep_nade_sample(
        ...     torch.zeros(1, 2), first, first, *layers, torch.zeros(3, 4), torch.zeros(3), seed=1
        ... )
        >>> values.shape, log_prob
        (torch.Size([1, 3]), tensor([-2.0794], dtype=torch.float64))
    """
    variables = len(mask_weight)
    layers = (list(weights), list(biases), out_weight, out_bias)
    structure = (order, in_offsets, out_offsets, given, known, variables, activation, head, levels, head_kinds)
    draws = (seed, first_index, start, variables if stop is None else stop, temperature)
    return call("deep_nade_sample", state, in_weight, mask_weight, *layers, *structure, *draws)


@dataclass(frozen=True)
class MlpLayer:
    """A layer of the program of :func:`masked_mlp_sample`. Value 0 is the columns, value l + 1 the result of layer l.

    Attributes:
        sources: the value that each term reads; at most two terms, and none where a value is added. CONTEXT stands for
            the context in :func:`masked_mlp_flow`.
        add: the value that is added; it must have as many units. None adds nothing.
        activated: whether the activation is applied.

    Example:
        >>> MlpLayer((0,), activated=False).numbers()
        [0, -1, -1, 0]
    """

    sources: tuple[int, ...] = ()
    add: int | None = None
    activated: bool = True

    CONTEXT: ClassVar[int] = -2

    def numbers(self) -> list[int]:
        """The layer as the op takes it.

        Raises:
            ValueError: if there are more than two sources.
        """
        if len(self.sources) > 2:
            raise ValueError(f"MlpLayer: sources must be at most two values, got {self.sources}")
        first, second = (*self.sources, -1, -1)[:2]
        return [first, second, -1 if self.add is None else self.add, int(self.activated)]


def masked_mlp_sample(
    state: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    extents: Sequence[Tensor],
    unit_ends: Sequence[Tensor],
    *,
    program: Sequence[MlpLayer] | None = None,
    seed: int,
    variables: int | None = None,
    order: Tensor | None = None,
    in_offsets: Tensor | None = None,
    out_offsets: Tensor | None = None,
    given: Tensor | None = None,
    known: Tensor | None = None,
    activation: str = "relu",
    head: str = "bernoulli",
    levels: int = 0,
    head_kinds: Tensor | None = None,
    first_index: int = 0,
    start: int = 0,
    stop: int | None = None,
    temperature: float = 1.0,
    algorithm: str = "auto",
    by_input: bool = False,
    constants: Sequence[float] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Draws the variables at positions start ... stop-1 of a MADE, in one pass.

    .. math::
        v_{l+1}[u] = f\Big(b_l[u] + \sum_t \sum_{k < e_t[u]} W_t[u, k] v_{s_t}[k] + v_{a_l}[u]\Big),
        \quad v_0 = x \text{ by position}

    for the layers l of a program: each has up to two terms t, which read one earlier value each, an optional value that
    is added, and f, the activation or the identity. Without a program the layers are a plain stack with a linear last
    layer. The units of the last layer are the parameters of the head by position. In v_0 a variable with one column is
    represented by its value, a variable with several columns by a one in the column of its category. Each unit is
    computed once, when the last variable it sees is known, so all the arithmetic together is that of one masked forward
    pass. The draws are those of :func:`nade_sample`.

    Without hidden layers the network is a linear model for every variable, an FVSBN. Its one weight may then be stored
    ``by_input``, so that adding a drawn value to the parameters after it reads contiguous weights, and a zero costs
    nothing: this is faster for few rows, or for mostly zeros. On the CPU it draws the same samples. On CUDA it is not
    implemented: there the model :class:`ar_fast.models.FVSBN` uses another op, :func:`fvsbn_sample`.

    The inverse of a masked autoregressive flow is the same pass, except that nothing is drawn. Then ``head`` names a
    transform f of a variable, increasing and with the parameters of the last layer; ``given`` holds a number u for each
    variable, and the value is x with f(x) = u. An affine transform f(x) = s x + b has two parameters, b and the raw
    scale a; ``constants`` holds its constants:

    =================  ==================================================  ==================
    affine_soft_clip   s = exp(a / (1 + abs(a) / limit))                   limit
    affine_clamp       s = exp(a), a cut off at low and high               low, high
    affine_softplus    s = log(1 + e^a) + least                            least
    affine_sigmoid     s = sigmoid(a + c) + least                          c, least
    affine_gated       s = sigmoid(a + c), f(x) = s x + (1 - s) b          c
    =================  ==================================================  ==================

    A rational-quadratic spline of K bins maps [low, high] to itself and is the identity elsewhere. It has K widths, K
    heights and K - 1 derivatives at its inner knots; with K + 1 the first and the last are those of the ends, which are
    1 otherwise. Widths and heights are shares of high - low. "spline_soft_clip" (constants low, high, limit) has the
    shares softmax(r / (1 + 2 abs(r) / limit)) and the derivatives exp(r / (1 + abs(r) / limit)); "spline_softplus"
    (constants low, high, least width, least height, least derivative, factor) has least + (1 - K least)
    softmax(factor r) and least + log(1 + e^r).

    Args:
        state: (B, R_in + units of all layers but the last) in the compute dtype: the columns of v_0, then the layers'
            values. Zeros at position 0; later it is what the previous call returned. Not modified.
        weights: one for each term, in the order of the program, (units, units of the value it reads): the columns of
            v_0 and the units of the last layer by position, other units by ascending degree.
        biases: one for each layer, (units), or (B, units) in the compute dtype, or (0) for none.
        extents: one for each term, (units) int32: how many units of the value that the term reads each unit sees, never
            decreasing. ``by_input`` takes none: a unit sees the columns of all positions before its own.
        unit_ends: one for each layer except the last, (D) int32: how many of its units can be computed once the first p
            variables are known.
        program: an :class:`MlpLayer` for each layer; None is a plain stack with one layer per weight.
        seed: key of the random numbers.
        variables: D; None takes it from the offsets, order or unit_ends, else it is R_in.
        order: (D) int64, order[p] = variable at position p; None is 0 ... D-1.
        in_offsets: (D + 1) int64, the first column of each position; None is R_in / D each. A variable with a
            categorical head has one column, or one for each category; any other variable has one column.
        out_offsets: (D + 1) int64, the first output row of each position; None is R_out / D each.
        given: (B, D) in the compute dtype, by variable: the values of known variables; with a transform, its numbers u
            elsewhere.
        known: (B, D) bool, by variable: take the value from given and do not draw. It may be None with a transform.
        activation: "relu", "sigmoid", "tanh", "elu", "softplus", "silu", "gelu" or "leaky_relu".
        head: "bernoulli", "categorical", "gaussian_mixture", "logistic_mixture" or "per_variable", or a transform.
        levels: how many values a variable can take, for "logistic_mixture"; else 0.
        head_kinds: (D, 2) int64 by position, for "per_variable": the number of each variable's head, 0 to 3 in the list
            above, and its levels; None elsewhere.
        first_index: sample index of row 0.
        start: first position.
        stop: the position after the last; None is D.
        temperature: > 0, changes the draw but not log_prob.
        algorithm: "auto" or the name of one path; see ``ar_fast.explain``.
        by_input: the one weight is (R_in, R_out), from the last position to the first; the rows of one variable ascend,
            and so do its columns. The masked part of a row, its own variable's columns and all after them, has no
            effect. With a categorical head a variable has one row per category, even if it has one category. Inputs
            that are zero are skipped, so weights that are not finite have no effect there.
        constants: those of a transform.

    Returns:
        values (B, stop - start) by position in the compute dtype; log_prob (B) float64, nats of the drawn variables
        at temperature 1, or with a transform the sum of log dx/du over them; the state at position stop.

    Raises:
        RuntimeError: where a shape, dtype, device or range breaks a rule above.

    Sources: Germain, Gregor, Murray, Larochelle, "MADE", ICML 2015; Papamakarios, Pavlakou, Murray, "Masked
    autoregressive flow", NeurIPS 2017; Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", NeurIPS 2019. The
    schedule is ours.

    Example:
        >>> weights, biases = [torch.ones(2, 3), torch.ones(3, 2)], [torch.zeros(2), torch.zeros(3)]
        >>> extents = [torch.tensor([1, 2], dtype=torch.int32), torch.tensor([0, 1, 2], dtype=torch.int32)]
        >>> unit_ends = [torch.tensor([0, 1, 2], dtype=torch.int32)]
        >>> values, log_prob, state = masked_mlp_sample(torch.zeros(1, 5), weights, biases, extents, unit_ends, seed=1)
        >>> values.shape, state.shape
        (torch.Size([1, 3]), torch.Size([1, 5]))
    """
    if program is None:
        program = [MlpLayer((layer,), activated=layer < len(weights) - 1) for layer in range(len(weights))]
    if variables is None:
        sizes = [len(offsets) - 1 for offsets in (in_offsets, out_offsets) if offsets is not None]
        sizes += [len(tensor) for tensor in (order, *unit_ends) if tensor is not None]
        variables = (sizes or [weights[0].shape[0 if by_input else 1]])[0]
    layers = list(weights), list(biases), list(extents), list(unit_ends)
    numbers = [number for layer in program for number in layer.numbers()]
    structure = order, in_offsets, out_offsets, given, known, variables, activation
    draws = head, levels, head_kinds, seed, first_index, start, variables if stop is None else stop, temperature
    return call(
        "masked_mlp_sample",
        state,
        *layers,
        numbers,
        *structure,
        *draws,
        algorithm,
        by_input,
        [float(c) for c in constants],
    )


def fvsbn_sample(
    state: Tensor,
    weight: Tensor,
    *,
    seed: int,
    variables: int | None = None,
    order: Tensor | None = None,
    offsets: Tensor | None = None,
    in_offsets: Tensor | None = None,
    given: Tensor | None = None,
    known: Tensor | None = None,
    head: str = "bernoulli",
    levels: int = 0,
    head_kinds: Tensor | None = None,
    first_index: int = 0,
    start: int = 0,
    stop: int | None = None,
    temperature: float = 1.0,
    algorithm: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Draws the variables at positions start ... stop-1 of a fully visible belief network, on CUDA.

    On the CPU :func:`masked_mlp_sample` with ``by_input=True`` draws the same samples; this op has no CPU kernel. The
    reference runs on any device.

    .. math:: x_i \sim p_{\mathrm{head}}(\cdot; \theta_p), \quad \theta_p = b_p + \sum_{j < p} x_{\mathrm{order}[j]}
        W_{jp}, \quad i = \mathrm{order}[p]

    Each value is added into the parameters of the variables after it, and a zero costs nothing. Everything is stored by
    place, where place q is position D-1-q: row q of weight holds what the input at place q adds to the parameters of
    places 0 ... q-1; the rest of the row has no effect. With a categorical head each category has its own row. The
    draws are those of :func:`nade_sample`.

    Args:
        state: (B, R_out) in the compute dtype, the parameters by place: the bias at position 0; for later positions
            what the previous call returned. Not modified.
        weight: (R_in, R_out), float32, float64, bfloat16 or float16; R_in is R_out for "categorical" and D otherwise.
        seed: key of the random numbers.
        variables: D; None takes it from offsets or order, else it is R_in.
        order: (D) int64, order[p] = variable at position p; None is 0 ... D-1.
        offsets: (D + 1) int64, the first parameter of each place; None is R_out / D each.
        in_offsets: (D + 1) int64, the first weight row of each place, for a per_variable head: a categorical variable
            has as many rows as parameters, any other variable has one. None elsewhere.
        given: (B, D) in the compute dtype, by variable: the values of known variables.
        known: (B, D) bool, by variable: take the value from given and do not draw.
        head: "bernoulli", "categorical", "gaussian_mixture", "logistic_mixture" or "per_variable".
        levels: how many values a variable can take, for "logistic_mixture"; else 0.
        head_kinds: (D, 2) int64 by place, for "per_variable": the number of each variable's head, 0 to 3 in the list
            above, and its levels; None elsewhere.
        first_index: sample index of row 0.
        start: first position.
        stop: the position after the last; None is D.
        temperature: > 0, changes the draw but not log_prob.
        algorithm: "auto" or the name of one path; see ``ar_fast.explain``.

    Returns:
        values (B, stop - start) by position in the compute dtype; log_prob (B) float64, nats of the drawn variables
        at temperature 1; the state (B, R_out) at position stop.

    Raises:
        RuntimeError: where a shape, dtype, device or range breaks a rule above.

    Source: Frey, Hinton, Dayan, "Does the wake-sleep algorithm produce good density estimators?", NeurIPS 1995.
    """
    if variables is None:
        variables = len(offsets) - 1 if offsets is not None else len(weight if order is None else order)
    structure = order, offsets, in_offsets, given, known, variables
    draws = head, levels, head_kinds, seed, first_index, start, variables if stop is None else stop, temperature
    return call("fvsbn_sample", state, weight, *structure, *draws, algorithm)


def armlp_sample(
    state: Tensor,
    in_weight: Tensor,
    block_starts: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    *,
    seed: int,
    order: Tensor | None = None,
    offsets: Tensor | None = None,
    in_offsets: Tensor | None = None,
    given: Tensor | None = None,
    known: Tensor | None = None,
    activation: str = "sigmoid",
    head: str = "bernoulli",
    levels: int = 0,
    head_kinds: Tensor | None = None,
    first_index: int = 0,
    start: int = 0,
    stop: int | None = None,
    temperature: float = 1.0,
    algorithm: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Draws the variables at positions start ... stop-1 of a model with a separate network for every variable.

    .. math:: x_i \sim p_{\mathrm{head}}(\cdot; \theta_p), \quad
        \theta_p = b_p + V_p \, f\big(c_p + \sum_{j < p} x_{\mathrm{order}[j]} W_{pj}\big), \quad i = \mathrm{order}[p]

    Each network is evaluated once, from the nonzero values before it. Everything is stored by position, and networks
    are stored in blocks of 8: the weights of network p for input row r are row block_starts[p // 8] + r n + p % 8 of
    in_weight, where n is the number of networks in its block. A block has the input rows that its last network sees. An
    input row belongs to a variable, or with a categorical head to one category of it. The draws are those of
    :func:`nade_sample`.

    Args:
        state: (B, D) in the compute dtype, by position: the values before start; the others are ignored. Not modified.
        in_weight: (rows, H), float32, float64, bfloat16 or float16.
        block_starts: (ceil(D / 8) + 1) int64, the first row of in_weight of each block.
        in_bias: (D, H) or (B, D, H), in the dtype of in_weight or in the compute dtype.
        out_weight: (R_out, H); each position has as many rows as the head has parameters.
        out_bias: (R_out), in the dtype of in_weight or in the compute dtype.
        seed: key of the random numbers.
        order: (D) int64, order[p] = variable at position p; None is 0 ... D-1.
        offsets: (D + 1) int64, the first parameter of each position; None is R_out / D each.
        in_offsets: (D + 1) int64, the first input row of each position, for a per_variable head: a categorical variable
            has as many rows as parameters, any other variable has one. None elsewhere.
        given: (B, D) in the compute dtype, by variable: the values of known variables.
        known: (B, D) bool, by variable: take the value from given and do not draw.
        activation: "sigmoid", "tanh" or "relu".
        head: "bernoulli", "categorical", "gaussian_mixture", "logistic_mixture" or "per_variable".
        levels: how many values a variable can take, for "logistic_mixture"; else 0.
        head_kinds: (D, 2) int64 by position, for "per_variable": the number of each variable's head, 0 to 3 in the list
            above, and its levels; None elsewhere.
        first_index: sample index of row 0.
        start: first position.
        stop: the position after the last; None is D.
        temperature: > 0, changes the draw but not log_prob.
        algorithm: "auto" or the name of one path; see ``ar_fast.explain``.

    Returns:
        values (B, stop - start) by position in the compute dtype; log_prob (B) float64, nats of the drawn variables
        at temperature 1; the state (B, D) at position stop.

    Raises:
        RuntimeError: where a shape, dtype, device or range breaks a rule above.

    Source: Larochelle and Murray, AISTATS 2011, section 3, untied; Bengio and Bengio, NeurIPS 1999.

    Example:
        >>> weights = torch.zeros(2 * 3, 4), torch.tensor([0, 6]), torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3)
        >>> values, log_prob, state = armlp_sample(torch.zeros(1, 3), *weights, seed=1)
        >>> values.shape, log_prob
        (torch.Size([1, 3]), tensor([-2.0794], dtype=torch.float64))
    """
    weights = in_weight, block_starts, in_bias, out_weight, out_bias
    structure = order, offsets, in_offsets, given, known, activation
    stop = state.shape[-1] if stop is None else stop
    draws = head, levels, head_kinds, seed, first_index, start, stop, temperature
    return call("armlp_sample", state, *weights, *structure, *draws, algorithm)
