"""That the models are distributions, autoregressive in their order, and that samples follow them."""

import pytest
import torch
from chi_square import LEAST_P, chi_square_p, counts_of
from model_cases import CASES, all_binary, make_context, make_model

FIXED_SEED = 0


@pytest.mark.parametrize("kind, context_features", CASES)
def test_probabilities_of_all_vectors_sum_to_one(kind, context_features, device):
    model = make_model(kind, 10, context_features, device=device)
    x, context = all_binary(10, device), make_context(context_features, device=device)
    with torch.no_grad():
        total = model.log_prob(x, context).exp().sum().item()
        per_variable = model.log_prob(x, context, per_variable=True)
    assert abs(total - 1) < 1e-12
    assert abs(per_variable.sum(1).exp().sum().item() - 1) < 1e-12


@pytest.mark.parametrize("kind, context_features", CASES)
def test_jacobian_has_the_zeros_of_the_order_and_no_other(kind, context_features, device):
    variables = 9
    model = make_model(kind, variables, context_features, device=device, validate_args=False)
    x = torch.rand(variables, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(device)
    context = make_context(context_features, device=device)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, context).squeeze(-1), x)
    position = model.order.argsort()
    assert torch.equal(jacobian != 0, position[None, :] < position[:, None])
    if context is not None:
        of_context = torch.autograd.functional.jacobian(lambda context: model(x, context).squeeze(-1), context)
        assert bool((of_context != 0).all()), "context must enter every conditional, the first included"


DRAWS = 100_000


def tempered(model, x, context, temperature):
    """The exact probability of each x when every draw is at this temperature."""
    probability = torch.sigmoid(model(x, context).squeeze(-1) / temperature)
    return torch.where(x == 1, probability, 1 - probability).prod(-1)


@torch.no_grad()
@pytest.mark.parametrize("kind, context_features", CASES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_follow_the_distribution(kind, context_features, temperature, device):
    model = make_model(kind, 6, context_features, device=device)
    x, context = all_binary(6, device), make_context(context_features, device=device)
    counts = counts_of(model.sample(DRAWS, context, seed=11, temperature=temperature))
    assert chi_square_p(counts, tempered(model, x, context, temperature)) > LEAST_P
    assert chi_square_p(counts, tempered(model, x, context, 1.6 - temperature)) < LEAST_P, "the test has no power"


@torch.no_grad()
@pytest.mark.parametrize("kind, context_features", CASES)
def test_samples_given_a_prefix_follow_the_conditional_distribution(kind, context_features, device):
    model = make_model(kind, 6, context_features, device=device)
    x, context = all_binary(6, device), make_context(context_features, device=device)
    known = torch.zeros(6, dtype=torch.bool, device=device)
    known[model.order[:2]] = True
    given = torch.tensor([1, 0, 1, 0, 1, 0], device=device)
    samples, log_prob = model.sample(DRAWS, context, seed=12, given=given, known=known, return_log_prob=True)
    assert bool((samples[:, known] == given[known]).all())
    probability = model.log_prob(x, context).exp() * (x[:, known] == given[known]).all(1)
    assert chi_square_p(counts_of(samples), probability / probability.sum()) > LEAST_P
    drawn = model.log_prob(samples, context, per_variable=True)[:, ~known].sum(1)
    torch.testing.assert_close(log_prob, drawn, rtol=1e-10, atol=1e-10)
