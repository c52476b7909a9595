"""Inputs of offset_nade_sample."""

import itertools
import math

import torch

from ar_fast import reference

HEADS = {
    "bernoulli": 1,
    "categorical": 3,
    "many categories": 40,
    "gaussian_mixture": 2,
    "logistic_mixture": 19,
}


def op_case(
    batch=4,
    grid=(4, 5, 1),
    window=(2, 1),
    hidden=19,
    layers=(),
    *,
    head="bernoulli",
    shared_output=True,
    ordered=False,
    row_bias=False,
    activation="sigmoid",
    dtype=torch.float32,
    device="cpu",
):
    """state and keyword arguments of functional.offset_nade_sample; layers: the sizes of those after the first."""
    count, head = HEADS[head], "categorical" if head == "many categories" else head
    parameters = 3 * count if head.endswith("mixture") else count
    channels, variables, (up, side) = grid[2], math.prod(grid), window
    taps = len(reference.offset_taps(window))
    inputs = taps * channels + channels - 1
    rows = inputs * (count if head == "categorical" else 1)
    outputs = (channels if shared_output else variables) * parameters
    options, compute = {"dtype": dtype, "device": device}, reference.compute_dtype(dtype)
    # Real draws feed back: with small weights rounding does not grow from one to the next.
    size = 0.1 if head.endswith("mixture") else 1.0
    reach = (up * grid[1] + side) * channels + channels - 1
    return {
        "state": torch.zeros(batch, reach, dtype=compute, device=device),
        "in_weight": torch.randn(rows, hidden, **options) * size,
        "in_bias": torch.randn(*([batch] if row_bias else []), hidden, dtype=compute if row_bias else dtype).to(device),
        "weights": [
            torch.randn(above, below, **options) / below**0.5 for below, above in itertools.pairwise((hidden, *layers))
        ],
        "biases": [torch.randn(units, **options) * size for units in layers],
        "out_weight": torch.randn(outputs, (hidden, *layers)[-1], **options) / hidden**0.5,
        "out_bias": torch.randn(outputs, **options) * size,
        "grid": grid,
        "window": window,
        "seed": 11,
        "order": torch.randperm(variables).to(device) if ordered else None,
        "shared_output": shared_output,
        "activation": activation,
        "head": head,
        "levels": 7 if head == "logistic_mixture" else 0,
    }
