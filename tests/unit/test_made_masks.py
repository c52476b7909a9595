"""Several sets of masks of a MADE: the same weights, other degrees and orders; one at a time, and their mean."""

import itertools
import math

import pytest
import torch
from head_cases import HEADS, all_events
from model_cases import all_binary, random_binary

from ar_fast import models, orderings
from ar_fast.models import MADE

pytestmark = pytest.mark.heavy

VARIABLES = 7


def make(variables=VARIABLES, hidden_features=(41, 37), *, device="cpu", dtype=torch.float64, **options):
    options = {"degrees": "random", "degree_seed": 5, "n_masks": 4, "n_orders": 3, "activation": "tanh"} | options
    torch.manual_seed(2)
    model = MADE(variables, list(hidden_features), device=device, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1.5 * torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    return model


CONFIGURATIONS = [
    {},
    {"n_orders": 1},
    {"degrees": "even"},
    {"direct": True},
    {"hidden_features": (40, 40, 40), "residual": True, "direct": True},
    {"context_features": 2},
]


def context_of(model, *batch):
    if model.context_features == 0:
        return None
    generator = torch.Generator().manual_seed(4)
    return torch.randn(*batch, model.context_features, generator=generator, dtype=model.dtype).to(model.device)


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_each_set_of_masks_is_autoregressive_in_its_order(device, options):
    model = make(validate_args=False, device=device, **options)
    x = torch.rand(VARIABLES, dtype=torch.float64).to(device)
    context = context_of(model)
    seen = set()
    for index in range(model.n_masks):
        model.use_mask(index)
        jacobian = torch.autograd.functional.jacobian(lambda x: model(x, context).squeeze(-1), x)
        order = torch.arange(VARIABLES) if model.order is None else model.order.cpu()
        position = order.argsort().to(device)
        before = position[None, :] < position[:, None]
        assert bool((jacobian[~before] == 0).all())
        # Random degrees may miss a variable; what they see is then a little less than all that is before.
        assert int((jacobian != 0).sum()) > 0.5 * int(before.sum())
        seen.add(tuple(order.tolist()))
    assert len(seen) == model.n_orders


@torch.no_grad()
@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_the_ensemble_is_the_mean_of_the_probabilities(device, options):
    model = make(device=device, **options)
    x, context = all_binary(VARIABLES, device), context_of(model)
    ensemble = model.ensemble()
    log_prob = ensemble.log_prob(x, context)
    assert abs(log_prob.exp().sum().item() - 1) < 1e-12
    terms = torch.stack([model.use_mask(index).log_prob(x, context) for index in range(model.n_masks)])
    torch.testing.assert_close(log_prob, terms.logsumexp(0) - math.log(model.n_masks))
    assert not torch.allclose(terms[0], terms[1])
    samples, sampled = ensemble.sample(9, context, seed=1, return_log_prob=True)
    torch.testing.assert_close(sampled, ensemble.log_prob(samples, context))


@torch.no_grad()
@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_sampling_and_steps_agree_with_evaluation(device, options):
    model = make(device=device, **options)
    context = context_of(model, 3)
    for index in range(model.n_masks):
        samples, log_prob = model.use_mask(index).sample(5, context, seed=index, return_log_prob=True)
        torch.testing.assert_close(log_prob, model.log_prob(samples, context))
        rows = samples.reshape(-1, VARIABLES)
        contexts = None if context is None else context.repeat(5, 1)
        state, parameters = model.begin(len(rows), contexts), []
        while state.parameters is not None:
            parameters.append(state.parameters)
            state = model.next(
                state, rows[:, len(parameters) - 1 if model.order is None else model.order[len(parameters) - 1]]
            )
        want = model(rows, contexts)
        want = want if model.order is None else want[:, model.order]
        torch.testing.assert_close(torch.stack(parameters, 1), want)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in HEADS if name != "GaussianMixture"])
def test_every_head(name, device):
    model = make(4, head=HEADS[name], device=device)
    events = all_events(HEADS[name], 4).to(device)
    for index in range(4):
        log_prob = model.use_mask(index).log_prob(events)
        torch.testing.assert_close(log_prob.exp().sum().item(), 1.0, rtol=1e-10, atol=0)
        torch.testing.assert_close(model.log_prob(events, per_variable=True).sum(1), log_prob)
        samples, sampled = model.sample(9, seed=1, return_log_prob=True)
        torch.testing.assert_close(sampled, model.log_prob(samples))


def test_the_masks_are_those_of_the_seed():
    """Written out: they are the same on every machine."""
    model = make(5, (6,), n_masks=3, n_orders=2)
    degrees, orders = [], []
    for index in range(3):
        model.use_mask(index)
        degrees.append(model.degrees[0].tolist())
        orders.append(model.order.tolist())
    again, other = make(5, (6,), n_masks=3, n_orders=2), make(5, (6,), n_masks=3, n_orders=2, degree_seed=6)
    assert [again.use_mask(k).degrees[0].tolist() for k in range(3)] == degrees
    assert torch.equal(again.orders, model.orders)
    assert [other.use_mask(k).degrees[0].tolist() for k in range(3)] != degrees
    assert (degrees, orders) == WRITTEN_OUT


def test_random_degrees_leave_no_unit_blind():
    model = make(30, (9, 9, 9, 9))
    for index in range(4):
        degrees = model.use_mask(index).degrees
        assert all(int(own.min()) >= int(below.min()) for below, own in itertools.pairwise(degrees))
        assert all(int(layer.min()) >= 1 and int(layer.max()) <= 29 for layer in degrees)
    one = make(30, (9, 9), n_masks=1, n_orders=1)
    assert all(torch.equal(layer, layer.sort().values) for layer in one.degrees)
    assert all(layer.mask.rows is None and layer.mask.columns is None for layer in one.layers)


def test_masks_go_round():
    model = make()
    x = random_binary(5, VARIABLES)
    by_index = [model.use_mask(index).log_prob(x) for index in range(4)]
    model.use_mask(2)
    for index in (3, 0, 1, 2, 3):
        assert model.next_mask().mask_index == index
        assert torch.equal(model.log_prob(x), by_index[index])


def test_a_model_with_another_mask_shares_the_parameters():
    model = make(context_features=2, direct=True)
    other = model.with_mask(3)
    assert model.mask_index == 0 and other.mask_index == 3
    own = dict(other.named_parameters())
    assert own.keys() == dict(model.named_parameters()).keys()
    assert all(own[name] is parameter for name, parameter in model.named_parameters())
    assert len(list(model.ensemble().parameters())) == len(own)
    x, context = random_binary(5, VARIABLES), context_of(model, 5)
    assert torch.equal(other.log_prob(x, context), model.use_mask(3).log_prob(x, context))


def test_a_sample_is_that_of_the_sorted_model():
    """Weights are gathered for the sampler; a change of the parameters is seen."""
    model = make().use_mask(2)
    plain = model._sorted()
    assert all(layer.mask.rows is None and layer.mask.columns is None for layer in plain.layers)
    assert torch.equal(plain.sample(5, seed=1), model.sample(5, seed=1))
    x = random_binary(5, VARIABLES)
    torch.testing.assert_close(plain.log_prob(x), model.log_prob(x))
    with torch.no_grad():
        model.layers[-1].bias += 40
    assert bool((model.sample(5, seed=1) == 1).all())


def test_training_with_other_masks_in_every_batch():
    torch.manual_seed(0)
    model = MADE(8, [60], degrees="random", n_masks=4, n_orders=4)
    x = random_binary(1, 8, dtype=torch.float32).repeat(64, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    before = model.ensemble().log_prob(x).mean().item()
    for _ in range(60):
        loss = -model.next_mask().log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.ensemble().log_prob(x).mean().item() > max(before + 2, -0.5)


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_saved_and_loaded(options, tmp_path):
    model = make(order=orderings.random(VARIABLES, seed=9), **options).use_mask(2)
    model.save(tmp_path / "one")
    x, context = random_binary(5, VARIABLES), context_of(model, 5)
    loaded = models.load(tmp_path / "one")
    assert loaded.mask_index == 2 and torch.equal(loaded.log_prob(x, context), model.log_prob(x, context))
    for index in range(4):
        expected = model.use_mask(index).log_prob(x, context)
        assert torch.equal(loaded.use_mask(index).log_prob(x, context), expected)
    other = make(**options | ({} if model.n_orders > 1 else {"order": orderings.random(VARIABLES, seed=8)}))
    other.reset_parameters()
    other.load(tmp_path / "one")
    assert torch.equal(other.use_mask(3).log_prob(x, context), expected)
    other.load_state_dict(model.use_mask(1).state_dict())
    assert other.mask_index == 1 and torch.equal(other.log_prob(x, context), model.log_prob(x, context))
    assert torch.equal(other.use_mask(3).log_prob(x, context), expected)
    ensemble = model.ensemble()
    ensemble.save(tmp_path / "all")
    torch.testing.assert_close(models.load(tmp_path / "all").log_prob(x, context), ensemble.log_prob(x, context))


def test_a_file_of_a_set_of_masks_that_is_not_there_is_refused(tmp_path):
    model = make()
    model.mask_index = 4
    model.save(tmp_path)
    with pytest.raises(ValueError, match="mask_in_use must be that of one of 4 sets of masks, got 4"):
        make().load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degrees": "odd"}, "degrees must be 'even', 'random' or those of each layer, got 'odd'"),
        ({"degree_seed": -1}, r"degree_seed must be an integer in 0 ... 2\^63 - 1, got -1"),
        ({"n_masks": 0}, "n_masks must be a positive integer, got 0"),
        ({"n_orders": 1.5}, "n_orders must be a positive integer, got 1.5"),
        ({"n_masks": 2, "n_orders": 3}, "n_orders must be at most n_masks = 2, got 3"),
        ({"degrees": "even", "n_orders": 1}, "n_masks must be 1 unless degrees are 'random' or n_orders"),
    ],
)
def test_bad_masks(options, message):
    with pytest.raises(ValueError, match=f"MADE: {message}"):
        make(**options)


def test_a_set_of_masks_that_is_not_there():
    for call in (make().use_mask, make().with_mask):
        for index in (4, -1, 1.0):
            with pytest.raises(ValueError, match="MADE: index must be that of one of 4 sets of masks, got"):
                call(index)


WRITTEN_OUT = (
    [[4, 2, 4, 3, 3, 3], [2, 4, 2, 3, 2, 4], [1, 2, 2, 1, 1, 1]],
    [[0, 1, 2, 3, 4], [1, 2, 0, 3, 4], [0, 1, 2, 3, 4]],
)


def positive(model):
    """Positive weights and tanh: no two paths cancel, and what has a path has a gradient."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape) / parameter.shape[-1])
    return model


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize(
    "hidden_features, options",
    [
        ([2], {}),
        ([1], {}),
        ([3, 1, 2], {}),
        ([30, 2], {}),
        ([3, 3, 3], {"residual": True}),
        ([2], {"degrees": "random"}),
        ([4, 1, 3], {"degrees": "random"}),
        ([3, 3, 3], {"degrees": "random", "residual": True}),
        ([3, 2], {"degrees": "random", "n_masks": 5}),
        ([3, 2], {"degrees": "random", "n_masks": 5, "n_orders": 3}),
        ([3, 2], {"degrees": "even", "n_masks": 3, "n_orders": 3}),
        ([2, 2, 2], {"degrees": "random", "residual": True, "n_masks": 5, "n_orders": 2}),
        ([3, 2], {"degrees": [[5, 0, 2], [0, 1]]}),
    ],
    ids=str,
)
def test_every_output_sees_the_context(device, hidden_features, options, direct):
    arguments = {"activation": "tanh", "direct": direct, "device": device, "dtype": torch.float64} | options
    model = positive(MADE(6, hidden_features, context_features=2, **arguments))
    context = torch.ones(2, dtype=torch.float64, device=device)
    x = random_binary(1, 6, device=device)
    for index in range(model.n_masks):
        model.use_mask(index)
        assert all(int(layer.min()) == 0 for layer in model.degrees)
        jacobian = torch.autograd.functional.jacobian(lambda context: model(x, context).flatten(), context)
        assert bool((jacobian != 0).all())
        # Sampling and stepping have the same masks.
        samples, log_prob = model.sample(5, context, seed=1, return_log_prob=True)
        torch.testing.assert_close(log_prob, model.log_prob(samples, context))
        first = model.begin(context=context.requires_grad_()).parameters
        assert bool((torch.autograd.grad(first.sum(), context)[0] != 0).all())
        context = context.detach()


@pytest.mark.parametrize("degrees", [[[1, 2], [0, 1, 1]], [[0, 2], [1, 1, 1]], [[3, 3], [3, 4, 5]]])
def test_given_degrees_that_hide_the_context_are_refused(degrees):
    lowest = [min(layer) for layer in degrees]
    message = rf"degrees must have a 0 in every hidden layer with context_features, .*degrees are \[{lowest[0]}, "
    with pytest.raises(ValueError, match=message):
        MADE(6, [2, 3], degrees=degrees, context_features=1)
    MADE(6, [2, 3], degrees=degrees)
    with pytest.raises(ValueError, match="degrees must have a 0 in every hidden layer"):
        MADE(6, [2] * 3, degrees=[[1, 2]] * 3, residual=True, direct=True, context_features=1)


def test_degrees_without_a_context_and_those_with_a_zero_are_as_ever():
    """Those of models that are saved."""
    assert [layer.tolist() for layer in MADE(6, [2, 5]).degrees] == [[2, 4], [1, 2, 3, 4, 5]]
    random = MADE(6, [4, 4], degrees="random", degree_seed=1)
    assert [layer.tolist() for layer in random.degrees] == [[2, 4, 4, 5], [2, 2, 3, 3]]
    assert MADE(6, [7], context_features=1).degrees[0].tolist() == [0, 1, 2, 3, 3, 4, 5]
    assert MADE(6, [2], context_features=1).degrees[0].tolist() == [0, 4]
