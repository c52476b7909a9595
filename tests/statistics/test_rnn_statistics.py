"""RNN and CharRNN: distributions whose samples follow them, with every rule of drawing."""

import itertools

import pytest
import torch
from chi_square import LEAST_P, chi_square_p, counts_of
from rnn_model_cases import HEADS, make_char_rnn, make_rnn

FIXED_SEED = 0
DRAWS = 60_000


def every(size, variables):
    return torch.tensor(list(itertools.product(range(size), repeat=variables)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["Categorical", "LogisticMixture"])
@pytest.mark.parametrize(("cell", "num_layers"), [("gru", 1), ("lstm", 2), ("rnn", 1)])
def test_samples_follow_the_distribution(name, cell, num_layers, device):
    model = make_rnn(4, cell, num_layers, head=HEADS[name], order=[2, 0, 3, 1], gain=3.0, device=device)
    size = 3 if name == "Categorical" else 4
    probability = model.log_prob(every(size, 4).to(device)).exp().cpu()
    assert abs(probability.sum().item() - 1) < 1e-12
    counts = counts_of(model.sample(DRAWS, seed=4).cpu(), size)
    assert chi_square_p(counts, probability) > LEAST_P
    assert chi_square_p(counts, probability.flip(0)) < LEAST_P, "the test has no power"


@torch.no_grad()
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_density_of_reals_integrates_to_one(cell, device):
    model = make_rnn(2, cell, head=HEADS["GaussianMixture"], gain=0.5, device=device)
    line = torch.linspace(-40, 40, 641, dtype=torch.float64, device=device)
    total = sum(model.log_prob(torch.cartesian_prod(part, line)).exp().sum() for part in line.split(50))
    assert abs(total.item() * (line[1] - line[0]).item() ** 2 - 1) < 1e-6


def truncated(logits, temperature, top_k, top_p):
    """The probabilities that are drawn from, (..., V), one category at a time."""
    probability = (logits / temperature).softmax(-1)
    rows = []
    for row in probability.flatten(0, -2):
        kept, total = torch.zeros_like(row), 0.0
        order = row.argsort(descending=True, stable=True)[: top_k or None]
        share = row[order].sum()
        for category in order.tolist():
            if total >= top_p * share and top_p < 1:
                break
            kept[category], total = row[category], total + row[category]
        rows.append(kept / kept.sum())
    return torch.stack(rows).reshape(probability.shape)


@torch.no_grad()
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.6, None, None), (1.0, 2, None), (1.0, None, 0.7), (1.5, 3, 0.8)],
)
def test_text_follows_the_distribution(temperature, top_k, top_p):
    model, length = make_char_rnn("lstm", 2), 4
    prompt = model.encode("ba")
    events = every(5, length)
    logits = model(torch.cat([prompt.expand(len(events), -1), events], 1))[:, len(prompt) :]
    each = truncated(logits, temperature, top_k, 1.0 if top_p is None else top_p)
    probability = each.gather(-1, events[..., None]).prod(1)[:, 0]
    torch.testing.assert_close(probability.sum().item(), 1.0)
    tokens, _ = model.sample(
        DRAWS, length, prompt=prompt, seed=9, temperature=temperature, top_k=top_k, top_p=top_p
    )  # fmt: skip
    assert chi_square_p(counts_of(tokens, 5), probability) > LEAST_P


@torch.no_grad()
def test_a_stop_ends_texts_as_often_as_it_is_drawn():
    model = make_char_rnn()
    _, lengths = model.sample(DRAWS, 3, stop="c", seed=2)
    stop = 2
    events = every(5, 3)
    terms = model.log_prob(events, per_token=True).exp()
    stops = events == stop
    first = stops[:, 0] * terms[:, 0]
    second = ~stops[:, 0] * stops[:, 1] * terms[:, :2].prod(1)
    # A probability of the first tokens is counted once for each of what comes after.
    probability = torch.stack([first.sum() / 25, second.sum() / 5, torch.tensor(0.0, dtype=torch.float64)])
    probability[2] = 1 - probability.sum()
    assert chi_square_p(torch.bincount(lengths, minlength=4)[1:], probability) > LEAST_P
