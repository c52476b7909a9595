"""The op that samples from recurrent networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ._call import call

__all__ = ["RnnSample", "rnn_sample"]


class RnnSample(NamedTuple):
    """What :func:`rnn_sample` returns, and what a following call continues from.

    Attributes:
        values: (B, stop - start) by position, in the compute dtype.
        log_prob: (B) float64, nats of the drawn variables at temperature 1, without top_k and top_p.
        state: (L, B, H), the state after all values except the last one.
        cell_state: (L, B, H) of an LSTM, else None.
        last: (B), the value at position stop - 1, which is not in state yet.
        finished: (B) bool: rows that are finished and draw nothing more.
    """

    values: Tensor
    log_prob: Tensor
    state: Tensor
    cell_state: Tensor | None
    last: Tensor
    finished: Tensor


def rnn_sample(
    state: Tensor,
    last: Tensor,
    in_table: Tensor,
    in_bias: Tensor,
    recurrent_weights: Sequence[Tensor],
    recurrent_biases: Sequence[Tensor],
    out_weight: Tensor,
    out_bias: Tensor,
    *,
    seed: int,
    cell: str,
    variables: int | None = None,
    cell_state: Tensor | None = None,
    finished: Tensor | None = None,
    in_weights: Sequence[Tensor] = (),
    in_biases: Sequence[Tensor] = (),
    order: Tensor | None = None,
    given: Tensor | None = None,
    known: Tensor | None = None,
    limits: Tensor | None = None,
    head: str = "bernoulli",
    levels: int = 0,
    first_index: int = 0,
    first_position: int = 0,
    start: int = 0,
    stop: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_token: int = -1,
    algorithm: str = "auto",
) -> RnnSample:
    r"""Draws positions start ... stop-1 of a recurrent model: one call runs all steps.

    .. math::
        h^0_p = \mathrm{cell}\big(U x_{p-1} + c, \; h^0_{p-1}\big), \quad
        h^l_p = \mathrm{cell}\big(W^l h^{l-1}_p + b^l, \; h^l_{p-1}\big), \quad
        \theta_p = V h^{L-1}_p + d, \quad x_p \sim p_{\mathrm{head}}(\cdot; \theta_p)

    The cells and the order of their gates are those of torch.nn. For each gate, a = W x + b comes from the input and
    s = W h + b from the state:

    .. math::
        \mathrm{gru}: \; & n = \tanh(a_n + \sigma(a_r + s_r) \, s_n), \quad
            z = \sigma(a_z + s_z), \quad h' = n + z (h - n) \\
        \mathrm{lstm}: \; & k' = \sigma(a_f + s_f) \, k + \sigma(a_i + s_i) \tanh(a_g + s_g), \quad
            h' = \sigma(a_o + s_o) \tanh(k') \\
        \mathrm{rnn}: \; & h' = \tanh(a + s), \qquad \mathrm{rnn\_relu}: \; h' = \max(a + s, 0)

    The first layer's products with all possible inputs are given as a table. The first variable of a run has no value
    before it: its input is zero. A known variable is taken from given and not drawn, so a prompt is a set of known
    variables. The draws are those of :func:`nade_sample`; the random counter's variable is first_position + i. A row's
    result does not depend on the other rows or on how a run is cut into calls, bit for bit. The op has no gradient.

    Args:
        state: (L, B, H) in the compute dtype: the state of each layer, zeros at the start of a run. Not modified.
        last: (B) in the compute dtype: the value before start, a category by its number. It is not read at the start of
            a run (first_position + start = 0).
        in_table: the columns of U as rows, (V, G H), in the dtype of the weights or the compute dtype; G = 3, 4, 1 and
            1 gates. With a categorical head there is a row for each of its V = K categories, and a value selects its
            row; else V = 1, and a value scales the row.
        in_bias: c, (G H), or (B, G H) if each row has a context; in either of those two dtypes.
        recurrent_weights: for each layer (G H, H), torch's weight_hh; float32, float64, bfloat16 or float16.
        recurrent_biases: for each layer (G H), torch's bias_hh; either dtype.
        out_weight: V, (K, H): as many rows as the head has parameters, the same for every variable.
        out_bias: d, (K); either dtype.
        seed: key of the random numbers.
        cell: "gru", "lstm", "rnn" (tanh) or "rnn_relu".
        variables: D; None takes it from order or given, else from stop.
        cell_state: (L, B, H) in the compute dtype, of an LSTM; None elsewhere. Not modified.
        finished: (B) bool: rows that draw nothing more; None means that no row is finished.
        in_weights: for each layer after the first (G H, H), torch's weight_ih.
        in_biases: for each layer after the first (G H), torch's bias_ih; either dtype.
        order: (D) int64, order[p] = variable at position p; None is 0 ... D-1.
        given: (B, D) in the compute dtype, by variable: the values of known variables.
        known: (B, D) bool, by variable: take the value from given and do not draw.
        limits: (B) int64: a row is finished once it has this many positions, counted from position 0; None is no limit.
        head: "bernoulli", "categorical", "gaussian_mixture" or "logistic_mixture".
        levels: how many values a variable can take, for "logistic_mixture"; else 0.
        first_index: sample index of row 0.
        first_position: how many variables of the run lie before position 0.
        start: first position.
        stop: the position after the last; None is D.
        temperature: > 0, changes the draw but not log_prob.
        top_k: > 0 draws only from the top_k likeliest categories, ties in favour of the first; 0 draws from all.
        top_p: < 1 draws from the fewest of these categories whose total probability at this temperature reaches top_p,
            in descending order of probability and at least one.
        stop_token: a row that draws this category is finished; -1 is none.
        algorithm: "auto"; on CUDA also "block", where each block of threads has its own rows, or "grid", where the
            blocks share the units. Only "auto" multiplies by matrix instructions, where that can be; see
            ``ar_fast.explain``.

    Returns:
        values, log_prob, state, cell_state, last and finished, an :class:`RnnSample`. A row that is finished keeps its
        state, last and log_prob, and its further values are stop_token, or 0 where there is none.

    Raises:
        RuntimeError: where a shape, dtype, device or range breaks a rule above.

    Source: Elman, "Finding structure in time", Cognitive Science 1990; Hochreiter and Schmidhuber, "Long short-term
    memory", Neural Computation 1997; Cho et al., "Learning phrase representations using RNN encoder-decoder for
    statistical machine translation", EMNLP 2014; the truncation by probability: Holtzman et al., ICLR 2020.

    Example:
        >>> inputs = torch.zeros(1, 6), torch.zeros(6)
        >>> weights = [torch.zeros(6, 2)], [torch.zeros(6)], torch.zeros(1, 2), torch.zeros(1)
        >>> run = rnn_sample(torch.zeros(1, 1, 2), torch.zeros(1), *inputs, *weights, cell="gru", seed=1, stop=3)
        >>> run.values.shape, run.log_prob
        (torch.Size([1, 3]), tensor([-2.0794], dtype=torch.float64))
    """
    if variables is None:
        sizes = [tensor.shape[-1] for tensor in (order, given) if tensor is not None]
        variables = (sizes or [0 if stop is None else stop])[0]
    begins_with = state, cell_state, last, finished, in_table, in_bias
    layers = list(in_weights), list(in_biases), list(recurrent_weights), list(recurrent_biases)
    structure = out_weight, out_bias, order, given, known, limits, variables, cell
    positions = first_index, first_position, start, variables if stop is None else stop
    draws = head, levels, seed, *positions, temperature, top_k, top_p, stop_token
    result = RnnSample(*call("rnn_sample", *begins_with, *layers, *structure, *draws, algorithm))
    return result if cell == "lstm" else result._replace(cell_state=None)
