"""Draws of a conditional follow its distribution."""

import math

import pytest
import torch
from conditional_cases import DISCRETE, parameters_of, probabilities

from ar_fast import heads

FIXED_SEED = 0


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", DISCRETE)
def test_draws_have_the_distribution(name, temperature):
    head = DISCRETE[name]
    parameters, draws = parameters_of(head, 1), 20_000
    samples = head.sample(parameters.expand(draws, -1, -1), temperature=temperature)
    assert samples.shape == (draws, 1)
    assert samples.dtype == (torch.float64 if name == "Bernoulli" else torch.int64)
    if name == "LogisticMixture":
        logits, means, log_scales = parameters.chunk(3, -1)
        parameters = torch.cat([logits / temperature, means, log_scales + math.log(temperature)], -1)
    else:
        parameters = parameters / temperature
    expected = probabilities(head, parameters)[0] * draws
    observed = torch.bincount(samples.flatten().long(), minlength=len(expected)).double()
    enough = expected > 5
    statistic = ((observed - expected) ** 2 / expected)[enough].sum()
    freedom = max(1, int(enough.sum()) - 1)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_of_a_gaussian_mixture_have_the_distribution(temperature):
    head, draws = heads.GaussianMixture(3), 20_000
    parameters = parameters_of(head, 1)[0, 0]
    samples = head.sample(parameters.expand(draws, -1), temperature=temperature)
    logits, means, log_scales = parameters.chunk(3)
    normal = torch.distributions.Normal(means, log_scales.exp() * math.sqrt(temperature))
    uniform = ((logits / temperature).softmax(0) * normal.cdf(samples[:, None])).sum(1).sort().values
    assert (uniform - (torch.arange(draws) + 0.5) / draws).abs().max() < 2.2 / math.sqrt(draws)
