"""Parameters of conditionals, and the probabilities of all their values."""

import torch

from ar_fast import heads

DISCRETE = {
    "Bernoulli": heads.Bernoulli(),
    "Categorical": heads.Categorical(4),
    "LogisticMixture": heads.LogisticMixture(3, levels=9),
}


def values_of(head):
    size = head.sizes(1)[0]
    return torch.arange(size).unsqueeze(1)


def probabilities(head, parameters):
    """(n, 1, K) -> (n, values)."""
    x = values_of(head)
    return head.log_prob(parameters.expand(-1, len(x), -1), x[:, 0].expand(len(parameters), -1)).exp()


def parameters_of(head, count=50, dtype=torch.float64):
    return torch.randn(count, 1, head.counts(1), dtype=dtype) * 1.5
