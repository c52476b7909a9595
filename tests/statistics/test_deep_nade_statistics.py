"""DeepNADE: every ordering is a distribution, the loss is its expectation, and samples given any subset follow it."""

import itertools
import math

import pytest
import torch
from chi_square import LEAST_P, chi_square_p, counts_of
from deep_nade_cases import DISCRETE, HEADS, LAYERS, all_events, make, size_probability, terms_given
from model_cases import all_binary, random_binary

from ar_fast import orderings

FIXED_SEED = 0


@pytest.mark.parametrize("layers", LAYERS, ids=str)
@pytest.mark.parametrize("name", DISCRETE)
def test_probabilities_of_all_events_sum_to_one_in_every_ordering_and_in_ensembles(device, name, layers):
    model = make(4, layers, head=HEADS[name], device=device)
    x = all_events(HEADS[name], 4).to(device)
    orders = torch.stack([orderings.random(4, seed=seed) for seed in range(5)])
    single = [model.log_prob(x, order=order).exp() for order in orders]
    for probability in single:
        assert abs(probability.sum().item() - 1) < 1e-12
    ensemble = model.log_prob(x, order=orders).exp()
    torch.testing.assert_close(ensemble, torch.stack(single).mean(0), rtol=1e-12, atol=1e-15)
    assert abs(ensemble.sum().item() - 1) < 1e-12
    torch.testing.assert_close(model.log_prob(x, order=orders[:1]), single[0].log(), rtol=1e-12, atol=1e-12)


def test_the_loss_predicts_what_it_does_not_see_and_weights_it():
    """Every value of a row's loss is that of one of the sets, which come as often as they should."""
    model = make(4, [6])
    x = random_binary(1, 4)
    sets = torch.tensor(list(itertools.product([False, True], repeat=4)))[:-1]
    terms = torch.cat([terms_given(model, x, seen[None]) for seen in sets])
    left = (~sets).sum(1)
    values = -(terms * ~sets).sum(1) / (left * size_probability(left, 4))
    with torch.no_grad():
        draws = model.loss(x.expand(30_000, 4), generator=torch.Generator().manual_seed(1))
    distance, which = (draws[:, None] - values).abs().min(1)
    assert distance.max() < 1e-6
    probability = size_probability(left, 4) / torch.tensor([math.comb(4, int(n)) for n in left])
    assert abs(probability.sum().item() - 1) < 1e-12
    assert chi_square_p(torch.bincount(which, minlength=15), probability) > LEAST_P


@torch.no_grad()
@pytest.mark.parametrize("layers", LAYERS[:2], ids=str)
def test_samples_given_any_subset_follow_the_conditional_distribution(device, layers):
    """Random subsets of 6 variables, against the joint of the ordering that has them first, by enumeration."""
    draws = 60_000
    model = make(6, layers, device=device)
    x = all_binary(6, device)
    generator = torch.Generator().manual_seed(5)
    for seed in range(8):
        known = (torch.rand(6, generator=generator) < 0.5).to(device)
        given = random_binary(6, device=device, seed=seed)
        samples, log_prob = model.sample(draws, seed=seed, given=given, known=known, return_log_prob=True)
        assert bool((samples[:, known] == given[known]).all())
        first = torch.cat([model.order[known[model.order]], model.order[~known[model.order]]])
        joint = model.log_prob(x, order=first).exp() * (x[:, known] == given[known]).all(1)
        conditional = joint / joint.sum()
        assert chi_square_p(counts_of(samples), conditional) > LEAST_P
        terms = model.log_prob(samples, order=first, per_variable=True)
        torch.testing.assert_close(log_prob, terms.masked_fill(known, 0).sum(1), rtol=1e-10, atol=1e-10)
