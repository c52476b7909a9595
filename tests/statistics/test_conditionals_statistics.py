"""Draws of a conditional follow its distribution."""

import math

import pytest
import torch
from chi_square import LEAST_P, chi_square_p
from conditional_cases import DISCRETE, parameters_of, probabilities
from scipy import stats

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
    probability = probabilities(head, parameters)[0]
    counts = torch.bincount(samples.flatten().long(), minlength=len(probability))
    assert chi_square_p(counts, probability) > LEAST_P


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_of_a_gaussian_mixture_have_the_distribution(temperature):
    head, draws = heads.GaussianMixture(3), 20_000
    parameters = parameters_of(head, 1)[0, 0]
    samples = head.sample(parameters.expand(draws, -1), temperature=temperature)
    logits, means, log_scales = parameters.chunk(3)
    normal = torch.distributions.Normal(means, log_scales.exp() * math.sqrt(temperature))
    uniform = ((logits / temperature).softmax(0) * normal.cdf(samples[:, None])).sum(1)
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > LEAST_P
