"""Other orders of a model, and ensembles: the average of probabilities, and samples of it."""

import json
import math

import pytest
import torch
from ensemble_cases import make_ensemble
from model_cases import all_binary, bit_for_bit, make_context, make_model, random_binary

from ar_fast import heads, models
from ar_fast.models.ensemble import _BLOCK

FIXED_SEED = 0
pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("context_features", [0, 3])
def test_log_prob_is_that_of_the_mean_probability(context_features, device):
    ensemble = make_ensemble(context_features, device=device)
    x, context = all_binary(6, device), make_context(context_features, device=device)
    probability = torch.stack([member.log_prob(x, context).exp() for member in ensemble.members]).mean(0)
    got = ensemble.log_prob(x, context)
    torch.testing.assert_close(got.exp(), probability)
    assert abs(got.exp().sum().item() - 1) < 1e-12
    assert ensemble.log_prob(x.reshape(8, 8, 6), context).shape == (8, 8)


def test_probabilities_that_underflow():
    ensemble = make_ensemble(dtype=torch.float32, variables=300)
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.mul_(20)
    x = random_binary(4, 300, dtype=torch.float32)
    terms = torch.stack([member.log_prob(x) for member in ensemble.members]).double()
    assert bool((terms < -1000).all())
    torch.testing.assert_close(ensemble.log_prob(x).double(), terms.logsumexp(0) - math.log(3))


def test_gradients_reach_every_member():
    ensemble = make_ensemble()
    x = random_binary(5, 6)
    got = torch.autograd.grad(ensemble.log_prob(x).sum(), list(ensemble.parameters()))
    terms = torch.stack([member.log_prob(x) for member in ensemble.members])
    want = torch.autograd.grad(terms.exp().mean(0).log().sum(), list(ensemble.parameters()))
    assert len(got) == 4 + 6, "two members share one set of parameters"
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_what_is_known_may_differ_between_contexts(device):
    ensemble = make_ensemble(3, device=device, order=None)
    context = make_context(3, 4, device=device)
    known = torch.tensor([[2], [0], [6], [2]], device=device) > torch.arange(6, device=device)
    given = random_binary(4, 6, device=device)
    samples, log_prob = ensemble.sample(7, context, seed=1, given=given, known=known, return_log_prob=True)
    assert samples.shape == (7, 4, 6) and log_prob.shape == (7, 4)
    assert bool((samples == given)[:, known].all()) and bool((log_prob[:, 2].abs() < 1e-12).all())
    expected = ensemble.log_prob(samples, context) - ensemble.log_prob(given, context, observed=known)
    torch.testing.assert_close(log_prob, expected)


@bit_for_bit
@torch.no_grad()
@pytest.mark.parametrize("context_features", [0, 3])
def test_samples_do_not_depend_on_how_many_are_drawn(context_features):
    ensemble = make_ensemble(context_features, dtype=torch.float32, order=None)
    context = make_context(context_features, 2, dtype=torch.float32)
    known = torch.arange(6) < 2
    for options in ({}, {"given": torch.tensor([0, 1, 0, 0, 0, 0]), "known": known, "temperature": 0.7}):
        whole = ensemble.sample(2 * _BLOCK + 60, context, seed=5, **options)
        for cut in (1, 40, _BLOCK - 1, _BLOCK, _BLOCK + 7):
            first = ensemble.sample(cut, context, seed=5, **options)
            rest = ensemble.sample(len(whole) - cut, context, seed=5, first_index=cut, **options)
            assert torch.equal(whole, torch.cat([first, rest]))
        assert torch.equal(whole[1500], ensemble.sample(seed=5, context=context, first_index=1500, **options))


@torch.no_grad()
def test_no_two_samples_share_their_random_numbers():
    """Two members that are the same model draw other events than each other."""
    model = make_model("NADE", 80)
    samples = models.Ensemble([model, model]).sample(400, seed=2)
    assert len(samples.unique(dim=0)) == 400


def test_seeds_shapes_and_distribution():
    ensemble = make_ensemble(3)
    context = make_context(3, 4)
    torch.manual_seed(5)
    first = ensemble.sample((2, 3), context)
    torch.manual_seed(5)
    assert torch.equal(first, ensemble.sample((2, 3), context)) and first.shape == (2, 3, 4, 6)
    assert ensemble.sample(0, context, seed=1).shape == (0, 4, 6)
    distribution = ensemble.distribution(context)
    assert distribution.batch_shape == (4,) and distribution.event_shape == (6,)
    assert distribution.log_prob(distribution.sample((5,))).shape == (5, 4)


def test_missing_variables():
    ensemble = make_ensemble(order=None)
    x = random_binary(6)
    observed = torch.arange(6) < 2
    events = all_binary(6)
    total = ensemble.log_prob(events).exp()[(events[:, :2] == x[:2]).all(1)].sum()
    torch.testing.assert_close(ensemble.log_prob(x, observed=observed).exp(), total)
    with pytest.raises(ValueError, match="NADE: observed must be a prefix"):
        ensemble.log_prob(x, observed=torch.arange(6) < 1)


def test_another_order_shares_the_parameters(device):
    model = make_model("NADE", (2, 3), 2, device=device, order=None)
    order = [4, 2, 0, 1, 3, 5]
    other = model.in_order(order)
    assert model.order is None and other.order.tolist() == order
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    made = make_model("NADE", (2, 3), 2, device=device, order=order)
    x, context = random_binary(4, 2, 3, device=device), make_context(2, 4, device=device)
    assert torch.equal(other.log_prob(x, context), made.log_prob(x, context))
    assert torch.equal(other.sample(5, context, seed=1), made.sample(5, context, seed=1))
    assert not torch.equal(other.log_prob(x, context), model.log_prob(x, context))
    other.log_prob(x, context).sum().backward()
    assert model.in_weight.grad is not None
    with pytest.raises(ValueError, match=r"must be a permutation of 0 \.\.\. 5, got 0 2 times"):
        model.in_order([0, 0, 1, 2, 3, 4])


def test_a_model_by_position_has_one_order():
    with pytest.raises(ValueError, match="MADE: in_order is for models whose weights belong to variables"):
        make_model("MADE", 4).in_order([3, 2, 1, 0])


def test_save_and_load(tmp_path):
    ensemble = make_ensemble(3)
    x, context = random_binary(5, 6), make_context(3, 5)
    ensemble.save(tmp_path / "ensemble")
    assert sorted(path.name for path in (tmp_path / "ensemble").iterdir()) == [
        "config.json", "member_0", "member_1", "member_2",
    ]  # fmt: skip
    loaded = models.load(tmp_path / "ensemble")
    assert isinstance(loaded, models.Ensemble)
    assert torch.equal(loaded.log_prob(x, context), ensemble.log_prob(x, context))
    assert torch.equal(loaded.sample(5, context, seed=1), ensemble.sample(5, context, seed=1))
    for parameter in loaded.parameters():
        torch.nn.init.zeros_(parameter)
    assert loaded.load(tmp_path / "ensemble") is loaded
    assert torch.equal(loaded.log_prob(x, context), ensemble.log_prob(x, context))


def test_damaged_files_are_refused_and_leave_all_members_alone(tmp_path):
    ensemble = make_ensemble()
    x = random_binary(5, 6)
    ensemble.save(tmp_path)
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.add_(1)
    before = ensemble.log_prob(x)
    (tmp_path / "member_2" / "model.safetensors").write_bytes(b"no")
    for load in (ensemble.load, models.load):
        with pytest.raises(ValueError, match="must be a whole safetensors file"):
            load(tmp_path)
    assert torch.equal(ensemble.log_prob(x), before)
    path = tmp_path / "config.json"
    for members, message in ((2, "members must be 3 as in this ensemble, got 2"), (0, "must describe an Ensemble")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"config": {"members": members}}))
        with pytest.raises(ValueError, match=f"load: .*{message}"):
            ensemble.load(tmp_path)
    make_model("NADE", 6).save(tmp_path / "one")
    with pytest.raises(ValueError, match=r"config\.json must describe an Ensemble, got 'NADE'"):
        ensemble.load(tmp_path / "one")


@pytest.mark.parametrize(
    "message, members",
    [
        ("be one or more models", lambda: []),
        ("be one or more models", lambda: [torch.nn.Linear(2, 2)]),
        (
            r"agree in event_shape, got \(4,\) of member 0 and \(2, 2\) of member 1",
            lambda: [make_model("NADE", shape) for shape in (4, (2, 2))],
        ),
        (
            r"agree in values, got \[2, 2\] of member 0",
            lambda: [models.NADE(2, 3, head=heads.Categorical(k)) for k in (2, 3)],
        ),
        ("agree in context_features, got 0 of member 0", lambda: [make_model("NADE", 4, c) for c in (0, 2)]),
        ("agree in compute dtype", lambda: [make_model("NADE", 4, dtype=d) for d in (torch.float32, torch.float64)]),
    ],
)
def test_bad_members(message, members):
    with pytest.raises(ValueError, match=f"Ensemble: members must {message}"):
        models.Ensemble(members())
