"""Models of tables: the dependences of their order and no other, and samples with the right marginals."""

import itertools
import math

import pytest
import torch
from chi_square import LEAST_P, chi_square_p
from scipy import stats
from tabular_cases import DISCRETE, HEAD, KINDS, SCALE, SHIFT, make, table

FIXED_SEED = 0


def test_samples_marginals():
    """Of the first two variables of the order: a chi-square, and Kolmogorov-Smirnov given the first one's value."""
    draws = 20_000
    for kind, temperature in itertools.product(KINDS[:4], (1.0, 0.5)):
        model = make(kind)
        samples = model.sample(draws, seed=1, temperature=temperature)
        state = model.begin()
        levels, own = HEAD.heads[3], state.parameters.detach()
        logits, means, log_scales = own.unflatten(0, (3, -1)).unbind(0)
        changed = torch.cat([logits / temperature, means, log_scales + math.log(temperature)])
        values = torch.arange(4).unsqueeze(1)
        probability = levels.log_prob(changed.expand(4, 1, -1), values)[:, 0].exp()
        count = torch.bincount(samples[:, 3].long(), minlength=4)
        assert chi_square_p(count, probability) > LEAST_P

        parameters = model.next(model.begin(draws), samples[:, 3]).parameters.detach()
        logits, means, log_scales = parameters.unflatten(1, (3, 2)).unbind(1)
        normal = torch.distributions.Normal(means, log_scales.exp() * math.sqrt(temperature))
        z = (samples[:, 1] - SHIFT[1]) / SCALE[1]
        uniform = ((logits / temperature).softmax(1) * normal.cdf(z[:, None])).sum(1)
        assert stats.kstest(uniform.numpy(), "uniform").pvalue > LEAST_P


@pytest.mark.parametrize("kind", KINDS)
def test_jacobian_zeros(kind):
    model = make(kind)
    x = table(1)
    counts, order = HEAD.counts(5), model.order.tolist()
    base = model(x).split(counts, 1)
    for p, i in enumerate(order):
        moved = x.clone()
        moved[0, i] = (moved[0, i] + 1) % DISCRETE[i] if i in DISCRETE else moved[0, i] + SCALE[i]
        changed = [bool((a != b).any()) for a, b in zip(base, model(moved).split(counts, 1), strict=True)]
        assert [changed[j] for j in order] == [q > p for q in range(5)]
