"""An ensemble of models in different orders."""

import torch
from model_cases import make_model

from ar_fast import models, orderings


def make_ensemble(context_features=0, *, device="cpu", dtype=torch.float64, variables=6, order="random"):
    """A NADE in two orders and a MADE in a third one; of the same first two variables where order is None."""
    swapped = list(range(variables))
    swapped[0], swapped[1] = 1, 0
    orders = (
        [orderings.random(variables, seed) for seed in (1, 2, 3)] if order else [range(variables), swapped, swapped]
    )
    nade = make_model("NADE", variables, context_features, device=device, dtype=dtype, order=list(orders[0]))
    made = make_model("MADE", variables, context_features, device=device, dtype=dtype, order=list(orders[2]))
    return models.Ensemble([nade, nade.in_order(list(orders[1])), made])
