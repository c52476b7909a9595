"""Whether draws follow a distribution, shared by the statistics of every model."""

import torch
from torch import Tensor

#: A test of draws fails below this p-value. A run judges some 300, so that with other draws (of another seed, or of
#: code that uses its random numbers otherwise) one fails for no fault less than once in 10,000 runs.
LEAST_P = 1e-7
# How many draws a cell must expect: with fewer the tail of its count is heavier than that of a chi-square.
_EXPECTED = 50


def counts_of(samples: Tensor, size: int = 2) -> Tensor:
    """How often each event (size^D) is among the samples (N, D) of 0 ... size - 1, the last variable fastest."""
    weights = size ** torch.arange(samples.shape[1] - 1, -1, -1, device=samples.device)
    return torch.bincount((samples.long() * weights).sum(1), minlength=size ** samples.shape[1])


def chi_square_p(counts: Tensor, probability: Tensor) -> float:
    """The p-value of counts under the probabilities of the same cells. The rarest cells count as one; where the
    probability is 0 nothing may be counted."""
    assert not bool(counts[probability == 0].any())
    expected, order = (probability.double() * counts.sum()).sort()
    rare = (expected < _EXPECTED) | (expected.cumsum(0) - expected < _EXPECTED)
    expected, counts = (torch.cat([x[rare].sum()[None], x[~rare]]) for x in (expected, counts[order].double()))
    assert len(counts) > 1, "all cells are rare"
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(statistic.new_tensor((len(counts) - 1) / 2), statistic / 2).item()
