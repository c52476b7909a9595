"""DeepNADE: the loss, any ordering, ensembles, any known subset, any missing one, every head, one layer and more."""

import itertools
import math

import pytest
import torch
from deep_nade_cases import HEADS, LAYERS, all_events, make, size_probability, terms_given
from model_cases import make_context, random_binary

from ar_fast import functional, heads, models, orderings, reference

FIXED_SEED = 0
pytestmark = pytest.mark.heavy


def terms_in_order(model, x, order, context=None):
    """The definition: one pass of the network per variable, (B, D)."""
    terms = torch.empty(x.shape, dtype=model.dtype)
    observed = torch.zeros(x.shape, dtype=torch.bool)
    for i in order.tolist():
        terms[:, i] = terms_given(model, x, observed, context)[:, i]
        observed[:, i] = True
    return terms


def draw_events(head, count, variables):
    if isinstance(head, heads.GaussianMixture):
        return torch.randn(count, variables, dtype=torch.float64)
    events = all_events(head, variables)
    return events[torch.randint(len(events), (count,))]


@pytest.mark.parametrize("layers", LAYERS, ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_any_ordering_is_the_definition(device, name, layers):
    head = HEADS[name]
    model = make(4, layers, head=head, device=device, context_features=2)
    x, context = draw_events(head, 6, 4).to(device), make_context(2, 6, device=device)
    for order in (model.order, torch.tensor([0, 1, 2, 3]), torch.tensor([3, 1, 0, 2])):
        want = terms_in_order(model, x, order, context)
        got = model.log_prob(x, context, order=order.tolist(), per_variable=True)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(model.log_prob(x, context, order=order), want.sum(1))
        torch.testing.assert_close(model.in_order(order).log_prob(x, context), want.sum(1))
    torch.testing.assert_close(model.log_prob(x, context), terms_in_order(model, x, model.order, context).sum(1))


@pytest.mark.parametrize("layers", LAYERS, ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_gradients_are_those_of_the_definition(device, name, layers, monkeypatch):
    monkeypatch.setattr("ar_fast.models.deep_nade._BLOCK_ELEMENTS", 1)
    head = HEADS[name]
    model = make(4, layers, head=head, device=device, context_features=2)
    x, context = draw_events(head, 5, 4).to(device), make_context(2, 5, device=device)
    parameters = list(model.parameters())
    want = torch.autograd.grad(terms_in_order(model, x, model.order, context).sum(), parameters)
    got = torch.autograd.grad(model.log_prob(x, context).sum(), parameters)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layers", LAYERS[:2], ids=str)
def test_blocks_of_positions_change_nothing(layers, monkeypatch):
    model = make(11, layers)
    x = random_binary(5, 11)
    whole = model.log_prob(x)
    for elements in (1, 5 * max(layers) * 4):
        monkeypatch.setattr("ar_fast.models.deep_nade._BLOCK_ELEMENTS", elements)
        torch.testing.assert_close(model.log_prob(x), whole, rtol=1e-12, atol=1e-12)


def test_an_ensemble_averages_probabilities_far_below_the_smallest_float(device):
    model = make(700, [20], device=device, dtype=torch.float32)
    x = random_binary(3, 700, device=device, dtype=torch.float32)
    orders = torch.stack([orderings.random(700, seed=seed) for seed in range(3)])
    each = torch.stack([model.log_prob(x, order=order).double() for order in orders])
    assert each.max() < -200
    want = (each.logsumexp(0) - math.log(3)).float()
    assert torch.equal(model.log_prob(x, order=orders), want)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("layers", LAYERS[:2], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_the_loss_is_minus_log_prob_averaged_over_all_orderings(name, layers):
    """Over many draws of the sets; the exact average takes all 24 orderings."""
    model = make(4, layers, head=HEADS[name], context_features=2)
    x, context = draw_events(HEADS[name], 3, 4), make_context(2, 3)
    with torch.no_grad():
        want = -torch.stack(
            [model.log_prob(x, context, order=list(order)) for order in itertools.permutations(range(4))]
        ).mean(0)
        draws = model.loss(x.expand(20_000, 3, 4), context, generator=torch.Generator().manual_seed(0))
    error = draws.std(0) / 20_000**0.5
    assert bool((error < 0.05 * want.abs()).all()), "the test has power"
    assert bool(((draws.mean(0) - want).abs() < 4 * error).all())


def test_the_loss_follows_its_generator():
    model = make(6, [5])
    x = random_binary(4, 6)
    first = model.loss(x, generator=torch.Generator().manual_seed(3))
    assert torch.equal(model.loss(x, generator=torch.Generator().manual_seed(3)), first)
    torch.manual_seed(3)
    assert torch.equal(model.loss(x), first) and not torch.equal(model.loss(x), first)


@pytest.mark.parametrize("layers", LAYERS[:2], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_gradients_of_the_loss_are_those_of_the_definition(device, name, layers):
    head = HEADS[name]
    model = make(4, layers, head=head, device=device, context_features=2)
    x, context = draw_events(head, 1, 4).to(device), make_context(2, 1, device=device)
    loss = model.loss(x, context, generator=torch.Generator().manual_seed(4)).sum()
    sets = torch.tensor(list(itertools.product([False, True], repeat=4)))[:-1].to(device)
    values = [
        -(terms_given(model, x, seen[None], context) * ~seen).sum()
        / (int((~seen).sum()) * size_probability((~seen).sum(), 4))
        for seen in sets
    ]
    near = min(values, key=lambda value: abs(value.item() - loss.item()))
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(near, parameters), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.full
def test_training_on_the_loss_improves_every_ordering():
    torch.manual_seed(0)
    flips = torch.rand(500, 8) < 0.1
    flips[:, 0] = torch.rand(500) < 0.5
    x = flips.cumsum(1) % 2
    model = models.DeepNADE(8, [32])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(400):
        optimizer.zero_grad()
        model.loss(x).mean().backward()
        optimizer.step()
    truth = math.log(2) + 7 * -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    for seed in range(4):
        nats = -model.log_prob(x, order=orderings.random(8, seed)).mean().item()
        assert nats < truth + 0.5 < 8 * math.log(2) - 1


# ---------------------------------------------------------------- any known subset


@torch.no_grad()
@pytest.mark.parametrize("layers", LAYERS, ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_known_variables_may_differ_from_row_to_row(device, name, layers):
    head = HEADS[name]
    model = make(4, layers, head=head, device=device, context_features=2)
    context = make_context(2, 6, device=device)
    given = draw_events(head, 6, 4).to(device)
    known = torch.rand(6, 4, device=device) < 0.5
    # What is not known may hold anything.
    holes = given.double().masked_fill(~known, float("nan")) if given.is_floating_point() else given
    samples, log_prob = model.sample((), context, seed=3, given=holes, known=known, return_log_prob=True)
    assert torch.equal(samples[known], given[known])
    for row in range(6):
        first = torch.cat([model.order[known[row, model.order]], model.order[~known[row, model.order]]])
        terms = model.log_prob(samples[row], context[row], order=first, per_variable=True)
        torch.testing.assert_close(log_prob[row], terms[~known[row]].sum())
        alone = model.sample((), context[row], seed=3, given=given[row], known=known[row], first_index=row)
        assert torch.equal(alone, samples[row]), "a row does not depend on the others"
    everything = torch.ones_like(known)
    samples, log_prob = model.sample((), context, seed=3, given=given, known=everything, return_log_prob=True)
    assert torch.equal(samples, given) and bool((log_prob == 0).all())


@torch.no_grad()
@pytest.mark.parametrize("layers", LAYERS[:2], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_samples_do_not_depend_on_how_many_are_drawn_nor_on_chunks(device, name, layers):
    head = HEADS[name]
    model = make(4, layers, head=head, device=device, dtype=torch.float32)
    given, known = draw_events(head, 1, 4)[0].to(device), torch.tensor([False, True, False, False], device=device)
    for options in ({}, {"given": given if given.dtype == torch.int64 else given.float(), "known": known}):
        whole = model.sample(50, seed=5, return_log_prob=True, **options)
        first = model.sample(20, seed=5, return_log_prob=True, **options)
        rest = model.sample(30, seed=5, first_index=20, return_log_prob=True, **options)
        for of_whole, of_first, of_rest in zip(whole, first, rest, strict=True):
            assert torch.equal(of_whole, torch.cat([of_first, of_rest]))
        sampling = model.sampling(50, seed=5, **options)
        for count in (1, 0, 2, 1):
            sampling.advance(count)
        assert sampling.done and torch.equal(sampling.samples, whole[0])


@torch.no_grad()
@pytest.mark.parametrize("layers", LAYERS[:2], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_log_prob_of_a_sample_and_steps(device, name, layers):
    head = HEADS[name]
    model = make(4, layers, head=head, device=device, context_features=2)
    context = make_context(2, 7, device=device)
    samples, log_prob = model.sample((), context, seed=5, return_log_prob=True)
    torch.testing.assert_close(model.log_prob(samples, context), log_prob)
    terms, state = model.log_prob(samples, context, per_variable=True), model.begin(7, context)
    parameters = model(samples, context)
    while state.variable is not None:
        i = state.variable
        own = heads.Categorical(head.categories[i]) if name.startswith("Categorical,") else head
        term = own.log_prob(state.parameters.unsqueeze(1), samples[:, i : i + 1])[:, 0]
        torch.testing.assert_close(term, terms[:, i])
        state = model.next(state, samples[:, i])
    assert parameters.shape == ((7, 10) if name.startswith("Categorical,") else (7, 4, head.counts(4)))


# ---------------------------------------------------------------- missing variables


@torch.no_grad()
@pytest.mark.parametrize("layers", LAYERS[:2], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_missing_variables_are_left_out(device, name, layers):
    """That is the marginal of the ordering that has the observed ones first."""
    head = HEADS[name]
    model = make(4, layers, head=head, device=device, context_features=2)
    context = make_context(2, 6, device=device)
    x = draw_events(head, 6, 4).to(device)
    observed = torch.rand(6, 4, device=device) < 0.6
    holes = x.masked_fill(~observed, float("nan") if x.is_floating_point() else -1)
    got = model.log_prob(holes, context, observed=observed)
    terms = model.log_prob(holes, context, observed=observed, per_variable=True)
    assert bool((terms[~observed] == 0).all())
    torch.testing.assert_close(terms.sum(1), got)
    for row in range(6):
        own = observed[row, model.order]
        first = torch.cat([model.order[own], model.order[~own]])
        all_terms = model.log_prob(x[row], context[row], order=first, per_variable=True)
        torch.testing.assert_close(terms[row, observed[row]], all_terms[observed[row]])
    orders = [[0, 1, 2, 3], [3, 1, 0, 2]]
    each = torch.stack([model.log_prob(holes, context, observed=observed, order=order) for order in orders])
    want = each.logsumexp(0) - math.log(2)
    torch.testing.assert_close(model.log_prob(holes, context, observed=observed, order=orders), want)


def test_the_loss_with_missing_variables_is_that_of_a_model_without_them():
    """The missing ones are no inputs and no targets: what is left is the loss over the others."""
    model = make(5, [6])
    observed = torch.tensor([True, False, True, True, False])
    small = models.DeepNADE(3, [6], "tanh", dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            source = dict(model.named_parameters())[name]
            parameter.copy_(source[observed] if source.shape[0] == 5 else source)
        x = random_binary(1, 5).masked_fill(~observed, float("nan"))
        draws = model.loss(x.expand(20_000, 5), observed=observed.expand(20_000, 5))
        others = small.loss(x[:, observed].expand(20_000, 3))
    values = others.unique()
    assert (draws[:, None] - values).abs().amin(1).max() < 1e-9
    error = (draws.var() / 20_000 + others.var() / 20_000).sqrt()
    assert abs(draws.mean() - others.mean()) < 4 * error
    nothing = model.loss(x, observed=torch.zeros(1, 5, dtype=torch.bool))
    assert nothing.item() == 0


# ---------------------------------------------------------------- the rest of the interface


@pytest.mark.parametrize("layers", LAYERS[:2], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_save_and_load(tmp_path, name, layers):
    model = make(4, layers, head=HEADS[name], context_features=2)
    model.save(tmp_path)
    loaded = models.load(tmp_path)
    x, context = draw_events(HEADS[name], 3, 4), make_context(2, 3)
    assert repr(loaded) == repr(model) and torch.equal(loaded.log_prob(x, context), model.log_prob(x, context))


@pytest.mark.parametrize("layers", LAYERS[:2], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_sixteen_bits(device, emulation, name, layers):
    """Weights are stored in 16 bits; the arithmetic is that of the same weights in float32."""
    model = make(4, layers, head=HEADS[name], dtype=torch.bfloat16, device=device)
    single = make(4, layers, head=HEADS[name], dtype=torch.float32, device=device)
    with torch.no_grad():
        for target, source in zip(single.parameters(), model.parameters(), strict=True):
            target.copy_(source)
    x = draw_events(HEADS[name], 5, 4).to(device)
    x = x.float() if x.is_floating_point() else x
    assert torch.equal(model.log_prob(x), single.log_prob(x))
    samples = model.sample(5, seed=1), single.sample(5, seed=1)
    if device.type == "cpu" and not emulation:
        assert torch.equal(*samples)
    else:  # A warp reads twice as many weights of 16 bits at a time, which changes the order of its sums.
        torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-4)
    model.loss(x).mean().backward()
    assert model.in_weight.grad.dtype == torch.bfloat16


def test_deep_evaluation_compiles_and_keeps_few_units(device):
    model = make(6, [5, 4], device=device)
    x = random_binary(3, 6, device=device)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: model.log_prob(x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model.log_prob(x))


@pytest.mark.parametrize(
    "message, make_error",
    [
        ("hidden_features must be one or more positive integers, got \\[\\]", lambda: models.DeepNADE(4, [])),
        ("hidden_features must be .* got \\[3, 0\\]", lambda: models.DeepNADE(4, [3, 0])),
        ("activation must be one of sigmoid, tanh, relu, got 'elu'", lambda: models.DeepNADE(4, [3], "elu")),
        (
            "per_variable must be False for an ensemble of 2 orderings",
            lambda: make(3, [4], dtype=torch.float32).log_prob(
                torch.zeros(1, 3), order=[[0, 1, 2], [2, 1, 0]], per_variable=True
            ),
        ),
        (
            "order: must be a permutation of 0 ... 2, got 2",
            lambda: make(3, [4], dtype=torch.float32).log_prob(torch.zeros(3), order=[0, 1]),
        ),
        (
            "observed must be bool, got torch.float32",
            lambda: make(3, [4], dtype=torch.float32).loss(torch.zeros(2, 3), observed=torch.ones(2, 3)),
        ),
        ("x must be in the support", lambda: make(3, [4], dtype=torch.float32).loss(torch.full((2, 3), 2))),
    ],
)
def test_bad_arguments(message, make_error):
    with pytest.raises(ValueError, match=message):
        make_error()


# ---------------------------------------------------------------- what the op does for it


def variables_without_parameters(device):
    """Variables 1 and 3 of 4 are inputs only."""
    options = {"dtype": torch.float64, "device": device}
    weights = [torch.randn(4, 19, **options), torch.randn(19, **options), torch.randn(5, 19, **options)]
    return [*weights, torch.randn(5, **options)], torch.tensor([0, 2, 2, 5, 5], device=device)


def test_a_variable_without_parameters_is_only_an_input(device):
    weights, offsets = variables_without_parameters(device)
    tensors = [weight.requires_grad_() for weight in weights]
    x = torch.randn(3, 4, dtype=torch.float64, device=device)
    order = torch.tensor([3, 0, 1, 2], device=device)
    got = functional.nade(x, *tensors, order=order, out_offsets=offsets)
    want = reference.nade(x, *tensors, order=order, out_offsets=offsets)
    torch.testing.assert_close(got, want)
    upstream = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad(got, tensors, upstream), torch.autograd.grad(want, tensors, upstream), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_a_variable_without_parameters_must_be_known(device):
    (in_weight, in_bias, out_weight, out_bias), offsets = variables_without_parameters(device)
    state = in_bias.expand(3, -1).contiguous()
    options = {"seed": 4, "out_offsets": offsets, "head": "categorical"}
    given = torch.randn(3, 4, dtype=torch.float64, device=device)
    known = torch.tensor([False, True, False, True], device=device).expand(3, 4)
    got = functional.nade_sample(state, in_weight, out_weight, out_bias, given=given, known=known, **options)
    arguments = (state, in_weight, out_weight, out_bias, None, None, offsets, None, given, known, 4, "sigmoid")
    want = reference.nade_sample(*arguments, "categorical", 0, None, 4, 0, 0, 4, 1.0)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_a_variable_without_parameters_cannot_be_drawn():
    (in_weight, in_bias, out_weight, out_bias), offsets = variables_without_parameters("cpu")
    state, options = in_bias.expand(3, -1).contiguous(), {"out_offsets": offsets, "head": "categorical"}
    with pytest.raises(RuntimeError, match="a variable without rows of out_weight must be known, got variable 1 "):
        functional.nade_sample(state, in_weight, out_weight, out_bias, seed=1, **options)
    with pytest.raises(RuntimeError, match="nade_log_prob: out_offsets must ascend, got 2 before 2 at 1"):
        functional.nade_log_prob(torch.zeros(3, 4, dtype=torch.float64), in_weight, in_bias, out_weight, out_bias,
                                 out_offsets=offsets, head="categorical")  # fmt: skip


@pytest.mark.parametrize("context_features", [0, 2])
def test_per_sample_gradients_with_two_hidden_layers(context_features):
    torch.manual_seed(0)
    model = models.DeepNADE(4, [5, 3], activation="tanh", context_features=context_features, dtype=torch.float64)
    x, parameters = random_binary(3, 4), {name: value.detach() for name, value in model.named_parameters()}
    context = torch.randn(3, context_features, dtype=torch.float64) if context_features else None

    def loss(parameters, x, context):
        arguments = (x,) if context is None else (x, context)
        return -model.head.log_prob(torch.func.functional_call(model, parameters, arguments), x).sum()

    dims = (None, 0, None if context is None else 0)
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=dims)(parameters, x, context)
    for row in range(3):
        model.zero_grad()
        model.log_prob(x[row], None if context is None else context[row]).neg().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(per_sample[name][row], parameter.grad)
