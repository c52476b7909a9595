"""Ensembles: samples follow the average of the probabilities, and are independent of each other."""

import pytest
import torch
from chi_square import LEAST_P, chi_square_p, counts_of
from ensemble_cases import make_ensemble
from model_cases import all_binary, make_context

from ar_fast.models.ensemble import _BLOCK

FIXED_SEED = 0


@torch.no_grad()
@pytest.mark.parametrize("context_features", [0, 3])
def test_samples_follow_the_mixture(context_features, device):
    ensemble = make_ensemble(context_features, device=device)
    x, context = all_binary(6, device), make_context(context_features, device=device)
    counts = counts_of(ensemble.sample(60_000, context, seed=11))
    assert chi_square_p(counts, ensemble.log_prob(x, context).exp()) > LEAST_P
    for member in ensemble.members:
        assert chi_square_p(counts, member.log_prob(x, context).exp()) < LEAST_P, "the test has no power"


@torch.no_grad()
def test_samples_are_independent_of_each_other():
    """Of the next one, and of the one at the same place of the next block."""
    ensemble = make_ensemble()
    samples = ensemble.sample(16 * _BLOCK, seed=4)[:, :3]
    probability = ensemble.log_prob(all_binary(6)).exp().reshape(8, 8).sum(1)
    blocks = samples.reshape(8, 2, _BLOCK, 3)
    for pairs in (samples.reshape(-1, 6), torch.cat([blocks[:, 0], blocks[:, 1]], -1).reshape(-1, 6)):
        assert chi_square_p(counts_of(pairs), torch.outer(probability, probability).flatten()) > LEAST_P


@torch.no_grad()
@pytest.mark.parametrize("context_features", [0, 3])
def test_samples_given_a_prefix_follow_the_conditional_distribution(context_features, device):
    ensemble = make_ensemble(context_features, device=device, order=None)
    x, context = all_binary(6, device), make_context(context_features, device=device)
    known = torch.arange(6, device=device) < 2
    given = torch.tensor([1, 0, 1, 0, 1, 0], device=device)
    draws = 60_000
    samples, log_prob = ensemble.sample(draws, context, seed=3, given=given, known=known, return_log_prob=True)
    agrees = (x[:, known] == given[known]).all(1)
    probability = ensemble.log_prob(x, context).exp() * agrees
    assert chi_square_p(counts_of(samples), probability / probability.sum()) > LEAST_P
    torch.testing.assert_close(log_prob, ensemble.log_prob(samples, context) - probability.sum().log())
    # Members in equal parts would be another distribution.
    each = torch.stack([member.log_prob(x, context).exp() * agrees for member in ensemble.members])
    equal_parts = (each / each.sum(1, keepdim=True)).mean(0)
    assert chi_square_p(counts_of(samples), equal_parts) < LEAST_P, "the test has no power"
