"""OffsetNADE: a distribution, with the dependences of its window and no other, whose samples follow it."""

import itertools

import pytest
import torch
from chi_square import LEAST_P, chi_square_p, counts_of
from model_cases import all_binary
from offset_nade_cases import EVENTS, make

from ar_fast import heads, orderings

FIXED_SEED = 0


@pytest.mark.parametrize("event_shape, window", EVENTS, ids=str)
def test_jacobian_zeros_are_the_windows(device, event_shape, window):
    options = {"device": device, "validate_args": False, "order": orderings.random(event_shape, seed=2)}
    model = make(event_shape, window, hidden_features=(9, 5), **options)
    x = torch.rand(*event_shape, dtype=torch.float64).to(device)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).flatten(), x).flatten(1)
    sees = torch.zeros(model.variables, model.variables, dtype=torch.bool)
    order = model.order.tolist()
    _, columns, channels = model.grid
    up, side = model.window
    for p, i in enumerate(order):
        for q, j in enumerate(order[:p]):
            (r, c), (s, d) = divmod(p // channels, columns), divmod(q // channels, columns)
            sees[i, j] = abs(c - d) <= side and (r - up <= s < r or (s == r and d <= c))
    assert torch.equal((jacobian != 0).cpu(), sees)


@pytest.mark.parametrize("event_shape, window", [((8,), 3), ((2, 4), 1), ((2, 2, 2), 1)], ids=str)
def test_probabilities_of_all_events_sum_to_one(device, event_shape, window):
    model = make(event_shape, window, hidden_features=(9, 5), device=device)
    total = model.log_prob(all_binary(8, device).reshape(-1, *event_shape)).exp().sum().item()
    assert abs(total - 1) < 1e-12
    model = make((2, 2), 1, head=heads.Categorical(3), device=device)
    events = torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(-1, 2, 2).to(device)
    assert abs(model.log_prob(events).exp().sum().item() - 1) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("event_shape, window", [((6,), 2), ((2, 3), 1), ((3, 1, 2), 1)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_follow_the_distribution(device, event_shape, window, temperature):
    model = make(event_shape, window, hidden_features=(9, 5), device=device)
    x = all_binary(6, device)
    samples = model.sample(60_000, seed=4, temperature=temperature).flatten(1)
    probability = torch.sigmoid(model(x.reshape(-1, *event_shape)).squeeze(-1) / temperature)
    probability = torch.where(x == 1, probability, 1 - probability).prod(1)
    assert chi_square_p(counts_of(samples), probability) > LEAST_P
