"""The sampling op of models whose weights are tied over a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ._call import call

__all__ = ["offset_nade_sample"]


def offset_nade_sample(
    state: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    *,
    grid: Sequence[int],
    window: Sequence[int],
    seed: int,
    weights: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    order: Tensor | None = None,
    given: Tensor | None = None,
    known: Tensor | None = None,
    shared_output: bool = True,
    activation: str = "sigmoid",
    head: str = "bernoulli",
    levels: int = 0,
    first_index: int = 0,
    start: int = 0,
    stop: int | None = None,
    temperature: float = 1.0,
    algorithm: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Draws the variables at positions start ... stop-1 of a NADE whose input weights are tied by offset.

    Position p is channel p mod C of pixel p // C; pixels lie row by row. The sums below run over the taps t of a
    pixel's neighbourhood that lie on the grid, and over the channels s:

    .. math::
        a = c + \sum_{t, s} x_{t, s} W_{t, s} + \sum_{s < \mathrm{channel}} x_s W_{T, s}, \quad
        \theta = b + V h, \quad x \sim p_{\mathrm{head}}(\cdot; \theta)

    where h is f(a), or the last of the further hidden layers: h_1 = f(a), h_l = f(A_l h_{l-1} + c_l), in weights and
    biases. A pixel's neighbourhood consists of the ``up`` rows above, with ``side`` columns to each side, and the
    ``side`` pixels to the left: T = up (2 side + 1) + side taps, row by row. The sum over it is computed once for all
    channels of a pixel. The draws are those of :func:`nade_sample`. A row's result does not depend on the other rows.
    The op has no gradient.

    Args:
        state: (B, (up columns + side) C + C - 1) in the compute dtype: the values at the positions before start, the
            last position last. At position 0 it may hold anything; for later positions it is what the previous call
            returned. Not modified.
        in_weight: ((T C + C - 1) V, H_1): W, by tap, then channel, then value; the last C - 1 inputs are the earlier
            channels of the pixel itself. V is K for "categorical", where a value selects a row, else 1.
        in_bias: (H_1) or (B, H_1), in in_weight's dtype or the compute dtype.
        out_weight: (C K, H_L), as many rows for each channel as the head has parameters; or (D K, H_L), by variable.
        out_bias: (C K) or (D K).
        grid: (rows, columns, channels C); D is the product.
        window: (up, side).
        seed: key of the random numbers.
        weights: of the hidden layers after the first, (H_l, H_{l-1}) each, at most 16.
        biases: (H_l) each.
        order: (D) int64, order[p] = variable at position p; None is 0 ... D-1.
        given: (B, D) in the compute dtype, by variable: the values of known variables.
        known: (B, D) bool, by variable: take the value from given and do not draw.
        shared_output: whether out_weight is by channel; otherwise it is by variable.
        activation: "sigmoid", "tanh" or "relu".
        head: "bernoulli", "categorical", "gaussian_mixture" or "logistic_mixture".
        levels: how many values a variable can take, for "logistic_mixture"; else 0.
        first_index: sample index of row 0.
        start: first position.
        stop: the position after the last; None is D.
        temperature: > 0, changes the draw but not log_prob.
        algorithm: "pixels", one pixel after another; "wavefront", pixels of several rows of the image at a time, with
            the same result, on the CPU only; or "auto"; see ``ar_fast.explain``.

    Returns:
        values (B, stop - start) by position in the compute dtype; log_prob (B) float64, nats of the drawn variables
        at temperature 1; the state at position stop.

    Raises:
        RuntimeError: where a shape, dtype, device or range breaks a rule above.

    Source: Larochelle and Murray, AISTATS 2011, with the weights of a convolution.

    Example:
        >>> weights = torch.zeros(4, 2), torch.zeros(2), torch.zeros(1, 2), torch.zeros(1)
        >>> values, log_prob, state = offset_nade_sample(
        ...     torch.zeros(1, 4), *weights, grid=(2, 3, 1), window=(1, 1), seed=1
        ... )
        >>> values.shape, log_prob, state.shape
        (torch.Size([1, 6]), tensor([-4.1589], dtype=torch.float64), torch.Size([1, 4]))
    """
    layers = in_weight, in_bias, list(weights), list(biases), out_weight, out_bias
    structure = order, given, known, list(grid), list(window), shared_output, activation
    draws = head, levels, seed, first_index, start, math.prod(grid) if stop is None else stop, temperature
    return call("offset_nade_sample", state, *layers, *structure, *draws, algorithm)
