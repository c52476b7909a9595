"""Every model with every kind of structure that can be derived: offsets, one-hot columns, heads of each variable's own,
several sets of masks and orders."""

import itertools

import pytest
import torch
from model_cases import SHARED_KINDS

from ar_fast import heads, models

VARIABLES, ORDER = 4, [2, 0, 3, 1]
# With this order categories come before other variables, which depend on them.
HEADS = {
    "Bernoulli": heads.Bernoulli(),
    "Categorical": heads.Categorical(3),
    "list": heads.Categorical([2, 3, 1, 4]),
    "PerVariable": heads.PerVariable(
        [heads.GaussianMixture(2), heads.Bernoulli(), heads.Categorical(3), heads.LogisticMixture(1, levels=5)]
    ),
    "GaussianMixture": heads.GaussianMixture(2),
}
MAKERS = {
    "NADE": lambda **options: models.NADE(VARIABLES, 5, **options),
    "ARMLP": lambda **options: models.ARMLP(VARIABLES, 5, **options),
    "FVSBN": lambda **options: models.FVSBN(VARIABLES, **options),
    "DeepNADE": lambda **options: models.DeepNADE(VARIABLES, [5], "tanh", **options),
    "DeepNADE-2": lambda **options: models.DeepNADE(VARIABLES, [5, 6], "tanh", **options),
    "OffsetNADE": lambda **options: models.OffsetNADE(VARIABLES, 5, window=2, **options),
    "RNN": lambda **options: models.RNN(VARIABLES, 5, **options),
    "RNN-LSTM": lambda **options: models.RNN(VARIABLES, 4, "lstm", 2, **options),
    "MADE": lambda **options: models.MADE(VARIABLES, [7, 6], "tanh", direct=True, **options),
    "MADE-residual": lambda **options: models.MADE(VARIABLES, [6, 6, 6], "tanh", residual=True, **options),
    "MADE-masks": lambda **options: models.MADE(
        VARIABLES, [9, 8], "tanh", degrees="random", n_masks=4, n_orders=2, **options
    ),
}
# One parameter for each variable, or as many for each, or neither: some models share them between variables.
CASES = [
    pytest.param(kind, head, id=f"{kind}-{head}")
    for kind, head in itertools.product(MAKERS, HEADS)
    if head in (("Categorical", "GaussianMixture") if kind in SHARED_KINDS else ("Bernoulli", "list", "PerVariable"))
]


def context_features(head):
    return 2 if head in ("PerVariable", "Categorical") else 0


def build(kind, head, **options):
    """The model as its constructor leaves it."""
    options = {"order": ORDER, "head": HEADS[head], "context_features": context_features(head)} | options
    return MAKERS[kind](**options)


def make(kind, head, seed=1, **options):
    """With random parameters, units of its own, and the second set of masks and the second order where there are."""
    model = build(kind, head, **{"dtype": torch.float64} | options)
    randomize(model, seed)
    if kind == "MADE-masks":
        model.use_mask(1)
    return model


def randomize(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    if model.standardization is not None:
        shift = torch.randn(VARIABLES, generator=generator, dtype=torch.float64)
        scale = 0.5 + torch.rand(VARIABLES, generator=generator, dtype=torch.float64)
        model.standardize(mean=shift, std=scale)


def data(head, rows=6, *, device="cpu", dtype=torch.float64):
    """Events, and their contexts or None."""
    generator = torch.Generator().manual_seed(3)
    sizes = HEADS[head].sizes(VARIABLES)
    uniform = torch.rand(rows, VARIABLES, generator=generator, dtype=torch.float64)
    columns = [uniform[:, i] if size is None else (size * uniform[:, i]).floor() for i, size in enumerate(sizes)]
    context = torch.randn(rows, 2, generator=generator, dtype=torch.float64) if context_features(head) else None
    return torch.stack(columns, 1).to(device, dtype), None if context is None else context.to(device, dtype)
