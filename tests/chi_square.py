"""A chi-square test of drawn binary vectors, shared by the statistics of every model."""

import torch
from torch import Tensor


def chi_square_p(samples: Tensor, probability: Tensor) -> float:
    """The p-value of samples (N, D) under the probabilities (2^D) of all binary vectors, the last variable fastest."""
    weights = 2 ** torch.arange(samples.shape[1] - 1, -1, -1, device=samples.device)
    counts = torch.bincount((samples.long() * weights).sum(1), minlength=probability.numel()).double()
    cells = probability > 0
    assert bool((counts[~cells] == 0).all())
    expected = probability[cells] * samples.shape[0]
    statistic = ((counts[cells] - expected) ** 2 / expected).sum()
    freedom = torch.tensor((int(cells.sum()) - 1) / 2, dtype=torch.float64, device=samples.device)
    return torch.special.gammaincc(freedom, statistic.double() / 2).item()
