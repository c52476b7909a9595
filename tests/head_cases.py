"""Models with each head."""

import itertools

import pytest
import torch

from ar_fast import heads, models

HEADS = {
    "Bernoulli": heads.Bernoulli(),
    "Categorical": heads.Categorical(3),
    "Categorical, each its own": heads.Categorical([2, 1, 4, 3]),
    "GaussianMixture": heads.GaussianMixture(3),
    "LogisticMixture": heads.LogisticMixture(2, levels=5),
}


def model_of(head, kind="NADE", variables=4, device=None, dtype=torch.float64, **options):
    if kind == "MADE-residual":
        kind, sizes, options = "MADE", ([30, 30, 30], "tanh"), {"direct": True, "residual": True} | options
    else:
        sizes = {"NADE": (6,), "ARMLP": (6,), "MADE": ([40, 30], "tanh"), "FVSBN": ()}[kind]
    order = [2, 0, 3, 1][:variables]
    model = getattr(models, kind)(variables, *sizes, head=head, order=order, device=device, dtype=dtype, **options)
    if kind == "FVSBN":  # which starts from zeros
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.4 * torch.randn(parameter.shape))
    return model


KINDS = pytest.mark.parametrize("kind", ["NADE", "MADE", "MADE-residual", "FVSBN", "ARMLP"])


def all_events(head, variables):
    if isinstance(head, heads.LogisticMixture):
        sizes = [head.levels] * variables
    else:
        counts = head.counts(variables) if isinstance(head, heads.Categorical) else 2
        sizes = counts if isinstance(counts, list) else [counts] * variables
    return torch.tensor(list(itertools.product(*(range(size) for size in sizes))))


DISCRETE = [name for name in HEADS if name != "GaussianMixture"]
