"""That the models are distributions, autoregressive in their order, and that samples follow them."""

import pytest
import torch
from chi_square import chi_square_p
from model_cases import CASES, all_binary, bit_for_bit, make_context, make_model

import ar_fast.models.base as base

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


@pytest.fixture
def draws(emulation):
    return 4_000 if emulation else 100_000


def tempered(model, x, context, temperature):
    """The exact probability of each x when every draw is at this temperature."""
    probability = torch.sigmoid(model(x, context).squeeze(-1) / temperature)
    return torch.where(x == 1, probability, 1 - probability).prod(-1)


@torch.no_grad()
@pytest.mark.parametrize("kind, context_features", CASES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_follow_the_distribution(kind, context_features, temperature, device, draws):
    model = make_model(kind, 6, context_features, device=device)
    x, context = all_binary(6, device), make_context(context_features, device=device)
    samples = model.sample(draws, context, seed=11, temperature=temperature)
    assert chi_square_p(samples, tempered(model, x, context, temperature)) > 1e-3
    assert chi_square_p(samples, tempered(model, x, context, 1.6 - temperature)) < 1e-6, "the test has no power"


@torch.no_grad()
@pytest.mark.parametrize("kind, context_features", CASES)
def test_samples_given_a_prefix_follow_the_conditional_distribution(kind, context_features, device, draws):
    model = make_model(kind, 6, context_features, device=device)
    x, context = all_binary(6, device), make_context(context_features, device=device)
    known = torch.zeros(6, dtype=torch.bool, device=device)
    known[model.order[:2]] = True
    given = torch.tensor([1, 0, 1, 0, 1, 0], device=device)
    samples, log_prob = model.sample(draws, context, seed=12, given=given, known=known, return_log_prob=True)
    assert bool((samples[:, known] == given[known]).all())
    probability = model.log_prob(x, context).exp() * (x[:, known] == given[known]).all(1)
    assert chi_square_p(samples, probability / probability.sum()) > 1e-3
    drawn = model.log_prob(samples, context, per_variable=True)[:, ~known].sum(1)
    torch.testing.assert_close(log_prob, drawn, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("kind, context_features", CASES)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_log_prob_of_a_sample(kind, context_features, temperature, dtype, device):
    model = make_model(kind, 23, context_features, device=device, dtype=dtype)
    context = make_context(context_features, 3, device=device, dtype=dtype)
    samples, log_prob = model.sample(5, context, seed=13, temperature=temperature, return_log_prob=True)
    assert samples.dtype == log_prob.dtype == model.compute_dtype
    # In 16 bits, evaluation rounds hidden layers and context to storage; sampling keeps them in float32.
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.5}[dtype]
    torch.testing.assert_close(log_prob, model.log_prob(samples, context), rtol=tolerance, atol=tolerance)


@bit_for_bit
@torch.no_grad()
@pytest.mark.parametrize("kind, context_features", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_do_not_depend_on_how_many_are_drawn(kind, context_features, dtype, device):
    model = make_model(kind, 35, context_features, device=device, dtype=dtype)
    context = make_context(context_features, 2, device=device, dtype=dtype)
    whole = model.sample(100, context, seed=5, return_log_prob=True)
    first = model.sample(40, context, seed=5, return_log_prob=True)
    rest = model.sample(60, context, seed=5, first_index=40, return_log_prob=True)
    for of_whole, of_first, of_rest in zip(whole, first, rest, strict=True):
        assert torch.equal(of_whole, torch.cat([of_first, of_rest]))
    one = model.sample(1, context, seed=5, first_index=17, return_log_prob=True)
    assert torch.equal(one[0], whole[0][17:18]) and torch.equal(one[1], whole[1][17:18])


@bit_for_bit
@torch.no_grad()
@pytest.mark.parametrize("kind, context_features", CASES)
def test_samples_do_not_depend_on_blocks_and_chunks(kind, context_features, device, monkeypatch):
    model = make_model(kind, 17, context_features, device=device, dtype=torch.float32)
    context = make_context(context_features, 3, device=device, dtype=torch.float32)
    known = torch.zeros(17, dtype=torch.bool, device=device)
    known[model.order[:4]] = True
    options = {"seed": 6, "given": torch.ones(17, device=device), "known": known, "return_log_prob": True}
    whole, whole_log_prob = model.sample(7, context, **options)
    monkeypatch.setattr(base, "_BLOCK_ELEMENTS", 4 * model._state_features)
    blocks, blocks_log_prob = model.sample(7, context, **options)
    assert torch.equal(whole, blocks) and torch.equal(whole_log_prob, blocks_log_prob)
    monkeypatch.setattr(base, "_CHUNK_POSITIONS", 3)
    parts, parts_log_prob = model.sample(7, context, **options)
    assert torch.equal(whole, parts)
    torch.testing.assert_close(whole_log_prob, parts_log_prob, rtol=1e-6, atol=0)
