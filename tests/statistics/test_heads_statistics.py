"""Models with each head are distributions, and their samples follow them."""

import math

import pytest
import torch
from chi_square import LEAST_P, chi_square_p
from head_cases import DISCRETE, HEADS, KINDS, all_events, model_of
from scipy import stats

from ar_fast import heads

FIXED_SEED = 0


@KINDS
@pytest.mark.parametrize("name", DISCRETE)
def test_probabilities_of_all_events_sum_to_one(kind, device, name):
    model = model_of(HEADS[name], kind, device=device)
    total = model.log_prob(all_events(HEADS[name], 4).to(device)).exp().sum()
    torch.testing.assert_close(total.item(), 1.0, rtol=1e-10, atol=0)


@KINDS
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", DISCRETE)
def test_samples_have_the_models_distribution(kind, name, temperature):
    """Chi-square over all events of 4 variables; at another temperature of the first variable of the order."""
    head = HEADS[name]
    model = model_of(head, kind)
    draws = 40_000
    samples = model.sample(draws, seed=1, temperature=temperature)
    if temperature == 1.0:
        events = all_events(head, 4)
        probability = model.log_prob(events).exp()
        index = (samples.long()[:, None] == events).all(-1).int().argmax(1)
        observed = torch.bincount(index, minlength=len(events))
    else:
        first = samples[:, 2].long()
        parameters = model.begin().parameters.detach()
        if isinstance(head, heads.LogisticMixture):
            logits, means, log_scales = parameters.unflatten(0, (3, -1)).unbind(0)
            changed = torch.cat([logits / temperature, means, log_scales + math.log(temperature)])
        else:
            changed = parameters / temperature
        values = all_events(heads.Categorical(4) if name.startswith("Categorical,") else head, 1)
        own = heads.Categorical(4) if name.startswith("Categorical,") else head
        probability = own.log_prob(changed.expand(len(values), 1, -1), values)[:, 0].exp()
        observed = torch.bincount(first, minlength=len(values))
    assert chi_square_p(observed, probability.detach()) > LEAST_P


@KINDS
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gaussian_samples_have_the_models_distribution(kind, temperature):
    """Kolmogorov-Smirnov on the first variable of the order, and on the second given the first."""
    model = model_of(HEADS["GaussianMixture"], kind)
    draws = 20_000
    samples = model.sample(draws, seed=1, temperature=temperature)
    first = model.begin(draws)
    for state, value in ((first, samples[:, 2]), (model.next(first, samples[:, 2]), samples[:, 0])):
        logits, means, log_scales = state.parameters.detach().unflatten(1, (3, 3)).unbind(1)
        scale = log_scales.exp() * math.sqrt(temperature)
        normal = torch.distributions.Normal(means, scale)
        uniform = ((logits / temperature).softmax(1) * normal.cdf(value[:, None])).sum(1)
        assert stats.kstest(uniform.numpy(), "uniform").pvalue > LEAST_P
