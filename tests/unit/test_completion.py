"""Completion of any hole by models of one fixed order, against conditionals that are enumerated or integrated."""

import math

import pytest
import torch
from model_cases import FIXED_ORDER_KINDS, make_model

import ar_fast
from ar_fast import heads, models, orderings
from ar_fast.tasks._particles import _reached
from ar_fast.tasks.completion import complete

EVENTS = torch.tensor([[(number >> bit) & 1 for bit in range(12)] for number in range(2**12)])


@torch.no_grad()
def enumerated(model, given, known, context=None):
    """p(hole | known) over all values of the hole's bits, and log p(known)."""
    flat, mask = given.reshape(-1).long(), known.reshape(-1)
    events = EVENTS[(EVENTS[:, mask] == flat[mask]).all(1)]
    # In the order of the numbers that the bits of the hole make.
    events = events[numbers(events[:, ~mask]).argsort()]
    log_prob = model.log_prob(events.reshape(-1, *model.event_shape), context).double()
    return log_prob.softmax(0), log_prob.logsumexp(0).item()


def numbers(rows):
    return (rows.long() * 2 ** torch.arange(rows.shape[-1])).sum(-1)


def drawn_shares(samples, known):
    rows = samples.reshape(len(samples), -1)[:, ~known.reshape(-1)]
    return numbers(rows).bincount(minlength=2 ** rows.shape[1]).double() / len(rows)


def distance(model, given, known, samples, context=None):
    """Total variation between what was drawn and the conditional."""
    expected, _ = enumerated(model, given, known, context)
    return (drawn_shares(samples, known) - expected).abs().sum().item() / 2


def a_hole(shape, seed=0):
    """Bits, and a mask with five unknown ones in which the order's last is known."""
    generator = torch.Generator().manual_seed(seed)
    given = (torch.rand(shape, generator=generator) < 0.5).double()
    known = torch.ones(12, dtype=torch.bool)
    known[torch.tensor([1, 2, 5, 6, 9])] = False
    return given, known.reshape(shape)


@pytest.mark.parametrize("context_features", [0, 3])
@pytest.mark.parametrize("kind", FIXED_ORDER_KINDS)
def test_a_hole_is_drawn_from_the_enumerated_conditional(kind, context_features):
    model = make_model(kind, (3, 4), context_features)
    context = torch.linspace(-1, 1, context_features).double() if context_features else None
    given, known = a_hole((3, 4))
    found = complete(model, given, known, 20_000, context, particles=20_000, seed=3)
    _, log_prob = enumerated(model, given, known, context)
    # 32 values: sampling alone leaves a distance of about 0.015.
    assert distance(model, given, known, found.samples, context) < 0.03
    assert found.log_prob_known == pytest.approx(log_prob, abs=0.05) and not found.exact
    assert bool((found.samples == given)[:, known].all())


def test_the_conditional_is_not_that_of_clamping():
    # The test above would be empty if what comes after the hole did not matter.
    model = make_model("NADE", (3, 4))
    given, known = a_hole((3, 4))
    clamped = model.sample(20_000, given=given, known=known, clamp=True, seed=0)
    assert distance(model, given, known, clamped) > 0.06


@pytest.mark.parametrize("resample_below", [0, 0.5, 1])
@pytest.mark.parametrize("kind", ["NADE", "OffsetNADE"])
def test_resampling_changes_no_distribution(kind, resample_below):
    model = make_model(kind, (12,))
    given, known = a_hole((12,), seed=5)
    found = complete(model, given, known, 20_000, particles=20_000, resample_below=resample_below, seed=1)
    assert distance(model, given, known, found.samples) < 0.03
    weighted = len(found.effective_sample_sizes)
    # Nothing is resampled after the order's last variable.
    assert {0: found.resamplings == 0, 1: found.resamplings >= weighted - 1}.get(resample_below, True)
    assert bool((found.effective_sample_sizes <= 20_000).all()) and 1 <= found.survivors <= 20_000


def test_the_probability_of_the_known_part_has_the_right_mean():
    model = make_model("FVSBN", (12,))
    given, known = a_hole((12,))
    _, log_prob = enumerated(model, given, known)
    ratios = [
        math.exp(complete(model, given, known, particles=20, seed=seed).log_prob_known - log_prob)
        for seed in range(300)
    ]
    ratios = torch.tensor(ratios)
    assert abs(ratios.mean().item() - 1) < 4 * ratios.std().item() / 300**0.5


WINDOWED = {
    "image": ((3, 4), {"window": (1, 1)}),
    "no rows above": ((3, 4), {"window": (0, 2)}),
    "no columns": ((4, 3), {"window": (2, 0)}),
    "sequence": ((12,), {"window": 3}),
    "colour": ((3, 2, 2), {"window": (1, 1)}),
    "reversed": ((3, 4), {"window": (1, 1), "order": orderings.reversed((3, 4))}),
    "categories": ((3, 4), {"window": (1, 1), "head": heads.Categorical(2)}),
    "layers": ((3, 4), {"window": (1, 1), "hidden_features": (6, 5)}),
}


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_reach_what_they_reach(name):
    shape, options = WINDOWED[name]
    torch.manual_seed(0)
    model = models.OffsetNADE(shape, **{"hidden_features": 6, "activation": "tanh", "dtype": torch.float64} | options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    given, known = a_hole(shape)
    found = complete(model, given, known, 20_000, particles=20_000, seed=2)
    assert distance(model, given, known, found.samples) < 0.03
    assert found.log_prob_known == pytest.approx(enumerated(model, given, known)[1], abs=0.05)
    # A variable is weighted if and only if its conditional changes with the hole.
    mask, order = known.reshape(-1), torch.arange(12) if model.order is None else model.order
    rows = torch.where(mask, given.reshape(-1), EVENTS).reshape(-1, *shape)
    parameters = model(rows).detach().reshape(len(rows), 12, -1)
    changes = ((parameters - parameters[0]).abs().amax((0, 2)) > 1e-9) & mask
    assert len(found.effective_sample_sizes) == int(changes.sum())
    hole = ~mask[order].reshape(model.grid)
    reached = (_reached(hole, *model.window) & ~hole).reshape(-1)
    assert reached.tolist() == changes[order].tolist()


def test_a_hole_at_the_end_is_plain_completion():
    model, (given, _) = make_model("OffsetNADE", (3, 4), order=None), a_hole((3, 4))
    known = torch.arange(12).reshape(3, 4) < 7
    found = complete(model, given, known, 50, seed=4)
    assert torch.equal(found.samples, model.sample(50, given=given, known=known, seed=4))
    assert found.exact and found.log_prob_known == model.log_prob(given, observed=known).item()
    # An event without a hole, and one of which nothing is known.
    whole = complete(model, given, torch.ones(3, 4, dtype=torch.bool), seed=0)
    assert torch.equal(whole.samples, given)
    assert whole.log_prob_known == pytest.approx(model.log_prob(given).item(), abs=1e-12)
    nothing = complete(model, given * math.nan, torch.zeros(3, 4, dtype=torch.bool), 3, seed=0)
    assert torch.equal(nothing.samples, model.sample(3, seed=0)) and nothing.log_prob_known == 0


def test_a_hole_that_no_window_reaches_is_drawn_independently():
    torch.manual_seed(0)
    model = models.OffsetNADE((3, 8), hidden_features=5, window=(1, 1))
    known = torch.ones(3, 8, dtype=torch.bool)
    # A triangle in the lower right corner: what lies to the right of a pixel and below it is in the hole too.
    known[0, 7:] = known[1, 6:] = known[2, 5:] = False
    found = complete(model, torch.zeros(3, 8), known, 5, seed=0)
    assert found.exact and found.particles == 5 and len(found.effective_sample_sizes) == 0
    assert torch.equal(found.samples[:, known], torch.zeros(5, int(known.sum())))


def test_reals_are_integrated():
    torch.manual_seed(0)
    model = models.RNADE((3,), hidden_features=4, head=heads.GaussianMixture(2), dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    model.standardize(mean=torch.tensor([5.0, -2.0, 30.0]).double(), std=torch.tensor([2.0, 3.0, 10.0]).double())
    given, known = torch.tensor([6.0, math.nan, 33.0]).double(), torch.tensor([True, False, True])
    grid = torch.linspace(-80, 80, 40_001).double()
    rows = given.repeat(len(grid), 1)
    rows[:, 1] = grid
    density = model.log_prob(rows).detach().exp()
    total = torch.trapezoid(density, grid)
    mean = torch.trapezoid(density * grid, grid) / total
    spread = (torch.trapezoid(density * (grid - mean) ** 2, grid) / total).sqrt()
    found = complete(model, given, known, 20_000, particles=20_000, seed=0)
    assert found.log_prob_known == pytest.approx(total.log().item(), abs=0.05)
    drawn = found.samples[:, 1]
    assert abs(drawn.mean() - mean) < 0.05 * spread and drawn.std().item() == pytest.approx(spread.item(), rel=0.05)
    assert torch.equal(found.samples[:, known], given[known].expand(20_000, 2))


def test_columns_of_every_kind():
    torch.manual_seed(0)
    head = heads.PerVariable([heads.Bernoulli(), heads.Categorical(3), heads.GaussianMixture(2), heads.Categorical(4)])
    model = models.NADE(4, hidden_features=5, head=head, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    given = torch.tensor([0.0, 1.0, 0.3, 2.0]).double()
    known = torch.tensor([True, False, True, True])
    rows = given.repeat(3, 1)
    rows[:, 1] = torch.arange(3)
    log_prob = model.log_prob(rows).detach()
    found = complete(model, given, known, 20_000, particles=20_000, seed=0)
    shares = found.samples[:, 1].long().bincount(minlength=3) / 20_000
    torch.testing.assert_close(shares.double(), log_prob.softmax(0), atol=0.02, rtol=0)
    assert found.log_prob_known == pytest.approx(log_prob.logsumexp(0).item(), abs=0.05)


def test_a_seed_repeats_a_completion():
    model = make_model("OffsetNADE", (3, 4))
    given, known = a_hole((3, 4))
    first, again, other = (complete(model, given, known, 9, particles=50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.samples, again.samples) and first.log_prob_known == again.log_prob_known
    assert other.log_prob_known != first.log_prob_known
    assert first.samples.shape == (9, 3, 4) and complete(model, given, known, seed=1).samples.shape == (3, 4)


def test_the_seed_of_a_sample_does_not_find_it_again():
    torch.manual_seed(0)
    # Without a bias of the output, pixels are close to fair coins: no particle repeats 200 of them by chance.
    model = models.OffsetNADE((20, 20), hidden_features=4, window=(1, 1))
    drawn = model.sample(seed=0)
    known = torch.zeros(20, 20, dtype=torch.bool)
    known[15:] = known[:5] = True
    found = complete(model, drawn, known, 100, particles=100, seed=0)
    assert int((found.samples == drawn)[:, ~known].sum(1).max()) < 150


def test_the_cost_is_that_of_the_hole(monkeypatch):
    torch.manual_seed(0)
    model = models.OffsetNADE((200, 300), hidden_features=4, window=(2, 3))
    known = torch.ones(200, 300, dtype=torch.bool)
    known[50:60, 100:120] = False
    steps, after = [], models.OffsetNADE._parameters_after
    monkeypatch.setattr(
        models.OffsetNADE, "_parameters_after",
        lambda model, state, position: steps.append(len(state)) or after(model, state, position),
    )  # fmt: skip
    found = complete(model, torch.zeros(200, 300), known, particles=30, seed=0)
    # Ten rows and the two below, twenty columns and three on each side, but to the left in the rows of the hole only
    # what the rows above reach.
    assert 10 * 20 < len(steps) <= 12 * 26 and max(steps) == 30
    assert len(found.effective_sample_sizes) == len(steps) - 200


def test_an_orderless_model_conditions_by_itself():
    model, (given, known) = make_model("DeepNADE", (3, 4)), a_hole((3, 4))
    found = ar_fast.complete(model, given, known, 4, seed=1)
    assert found.exact and torch.equal(found.samples, model.sample(4, given=given, known=known, seed=1))


def test_errors_name_the_argument():
    model, (given, known) = make_model("NADE", (3, 4)), a_hole((3, 4))
    wrong = [
        ({"particles": 0}, ValueError, "particles must be a positive integer, got 0"),
        ({"particles": 1.5}, ValueError, "particles must be a positive integer, got 1.5"),
        ({"resample_below": 2}, ValueError, "resample_below must be a share, 0 ... 1, got 2"),
        ({"n": -1}, ValueError, "n must be an integer >= 0"),
        ({"seed": -1}, ValueError, "seed must be an integer"),
        ({"given": given[0]}, ValueError, "given must have the event's shape"),
        ({"given": given + 2}, ValueError, "given must be in the support"),
        ({"given": None}, ValueError, "given and known must come together, got no given"),
        ({"given": None, "known": None}, ValueError, "given and known must be tensors, got None"),
        ({"known": known.int()}, ValueError, "known must be bool, got torch.int32"),
        ({"context": torch.zeros(3)}, ValueError, "context must be None"),
        (
            {"model": models.Ensemble([model, model])},
            TypeError,
            "model must be a model of one fixed order, got Ensemble",
        ),
    ]
    for changes, error, says in wrong:
        with pytest.raises(error, match=says.replace("...", r"\.\.\.")):
            complete(**({"model": model, "given": given, "known": known} | changes))
    conditional = make_model("NADE", (3, 4), 3)
    with pytest.raises(ValueError, match=r"context must be that of one event, \(3,\), got \(2, 3\)"):
        complete(conditional, given, known, context=torch.zeros(2, 3).double())


def test_known_values_that_no_particle_allows():
    model = models.FVSBN(3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.bias.fill_(-math.inf)
    with pytest.raises(ValueError, match="10 particles none of which allows the value of variable 2"):
        complete(model, torch.ones(3).double(), torch.tensor([False, False, True]), particles=10, seed=0)
