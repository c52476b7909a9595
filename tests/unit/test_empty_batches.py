"""The smallest sizes: no events, one variable, one hidden unit, no features; with and without a context."""

import pytest
import torch
from masked_cases import masked_case
from model_cases import KINDS, SHARED_KINDS, make_context, make_model

from ar_fast import Mask, functional, heads, models
from ar_fast.nn import MaskedLinear

pytestmark = pytest.mark.heavy

HEADS = {
    "bernoulli": lambda variables: heads.Bernoulli(),
    "categories": lambda variables: heads.Categorical(3),
    "own categories": lambda variables: heads.Categorical([2 + i for i in range(variables)]),
    "real": lambda variables: heads.GaussianMixture(2),
    "levels": lambda variables: heads.LogisticMixture(1, 5),
    "own heads": lambda variables: heads.PerVariable(
        [heads.Categorical(3), heads.GaussianMixture(1), heads.LogisticMixture(1, 5)][:variables]
    ),
}


def smallest(kind, variables, context_features, **options):
    """One hidden unit in each layer."""
    options |= {"context_features": context_features, "dtype": torch.float64}
    if kind == "FVSBN":
        return models.FVSBN(variables, **options)
    if kind == "OffsetNADE":
        return models.OffsetNADE(variables, 1, 1, **options)
    if kind == "DeepNADE":
        return models.DeepNADE(variables, [1, 1], **options)
    if kind == "MADE-residual":
        return models.MADE(variables, [1] * 3, residual=True, direct=True, **options)
    if kind == "MADE-masks":
        return models.MADE(variables, [1, 1], degrees="random", n_masks=2, n_orders=2, **options)
    if kind == "MADE":
        return models.MADE(variables, [1], **options)
    if kind == "RNN-LSTM":
        return models.RNN(variables, 1, "lstm", 2, **options)
    return getattr(models, kind)(variables, 1, **options)


@pytest.mark.parametrize("context_features", [0, 2])
@pytest.mark.parametrize("kind", [*KINDS, "Ensemble"])
def test_every_method_takes_the_smallest_sizes(kind, context_features, device):
    for head in HEADS.values():
        for variables, batch in ((1, (0,)), (1, ()), (3, (0, 2))):
            options = {"head": head(variables), "device": device}
            if kind in SHARED_KINDS and isinstance(options["head"].counts(variables), list):
                continue
            if kind == "Ensemble":
                member = smallest("NADE", variables, context_features, **options)
                model = models.Ensemble([member, member])
            else:
                model = smallest(kind, variables, context_features, **options)
            check_every_method(model, batch, context_features)


def check_every_method(model, batch, context_features):
    variables, device = model.event_shape.numel(), model.device
    x = torch.zeros(*batch, variables, dtype=torch.float64, device=device)
    context = None
    if context_features:
        context = torch.ones(*batch, context_features, dtype=torch.float64, device=device, requires_grad=True)
    known = torch.ones(variables, dtype=torch.bool, device=device)

    log_prob = model.log_prob(x, context)
    assert log_prob.shape == batch and model.log_prob(x, context, observed=known).shape == batch
    model.zero_grad()
    log_prob.sum().backward()
    if 0 in batch:
        assert not any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    if context is not None:
        assert context.grad.shape == context.shape and not context.grad.isnan().any()

    n = () if context_features else batch
    samples, sampled = model.sample(n, context, seed=1, return_log_prob=True)
    assert samples.shape == (*batch, variables) and sampled.shape == batch
    torch.testing.assert_close(sampled, model.log_prob(samples, context))
    assert model.sample(0, context, seed=1).shape == (0, *(batch if context_features else ()), variables)
    zeros = x if context_features else x.new_zeros(variables)
    given = model.sample(n, context, seed=1, given=zeros, known=known)
    assert given.shape == samples.shape and not given.any()
    distribution = model.distribution(context)
    assert distribution.log_prob(distribution.sample((2,))).shape == (2, *distribution.batch_shape)
    if isinstance(model, models.Ensemble):
        return
    parameters = model(x, context)
    assert parameters.shape[: len(batch)] == batch
    assert model.log_prob(x, context, per_variable=True).shape == x.shape
    assert model.head.sample(parameters).shape == model.head.mode(parameters).shape == x.shape
    state = model.begin(batch, context)
    while state.parameters is not None:
        assert state.parameters.shape[:-1] == batch
        state = model.next(state, x[..., state.variable])
    if isinstance(model, models.DeepNADE):
        loss = model.loss(x, context)
        assert loss.shape == batch
        loss.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_no_events_of_an_image_with_a_context(kind, device):
    model = make_model(kind, (2, 3), 3, device=device)
    x = torch.zeros(0, 4, 2, 3, device=device, dtype=torch.float64)
    for context_batch in ((), (4,), (0, 4)):
        context = make_context(3, *context_batch, device=device).requires_grad_()
        log_prob = model.log_prob(x, context)
        assert log_prob.shape == (0, 4) and model(x, context).shape == (0, 4, 6, 1)
        log_prob.sum().backward()
        assert not context.grad.any()
        assert model.sample(0, context, seed=1).shape == (0, *context_batch, 2, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("sizes", [(3, 0), (0, 3), (0, 0), (3, 2)], ids=str)
@pytest.mark.parametrize("batch", [(), (0,), (2, 0), (2, 3)], ids=str)
def test_masked_linear_without_features(batch, sizes, activation, dtype, device):
    in_features, out_features = sizes
    for mask in (
        Mask.dense(out_features, in_features),
        torch.eye(out_features, in_features, dtype=torch.bool),
        torch.rand(out_features, in_features) < 0.5,
    ):
        layer = MaskedLinear(in_features, out_features, mask, activation=activation, device=device, dtype=dtype)
        x = torch.ones(*batch, in_features, device=device, dtype=dtype, requires_grad=True)
        y = layer(x)
        assert y.shape == (*batch, out_features)
        y.sum().backward()
        for tensor in (x, layer.weight, layer.bias):
            assert tensor.grad.shape == tensor.shape
        plain = torch.nn.functional.linear(x.detach(), layer.weight * layer.mask.to_dense(), layer.bias)
        plain = plain if activation is None else getattr(torch.nn.functional, activation)(plain)
        bias_grad = torch.autograd.grad(plain.sum(), layer.bias)[0]
        torch.testing.assert_close(layer.bias.grad, bias_grad)
        gradient = functional.masked_linear_grad_input(torch.ones_like(y), layer.weight, layer.mask)
        assert gradient.shape == x.shape
        if dtype == torch.float64:
            x.grad = layer.weight.grad = None
            (first,) = torch.autograd.grad(layer(x).sum(), layer.weight, create_graph=True)
            assert first.shape == layer.weight.shape
            if first.requires_grad:
                first.sum().backward()


def test_ops_without_rows_or_hidden_units(device):
    for batch, hidden in ((0, 2), (2, 0), (0, 0), (0, 1)):
        x = torch.ones(batch, 3, device=device)
        shapes = ((3, hidden), (batch, hidden), (3, hidden), (3,))
        weights = [torch.ones(*shape, device=device, requires_grad=True) for shape in shapes]
        parameters = functional.nade(x, *weights)
        assert parameters.shape == (batch, 3)
        parameters.sum().backward()
        log_prob = functional.nade_log_prob(x, *weights)
        assert log_prob.shape == (batch,)
        log_prob.sum().backward()
        assert [weight.grad.shape for weight in weights] == [weight.shape for weight in weights]
        in_weight, state, out_weight, out_bias = (weight.detach() for weight in weights)
        values, _, state = functional.nade_sample(state, in_weight, out_weight, out_bias, seed=1)
        assert values.shape == (batch, 3) and state.shape == (batch, hidden)
        assert functional.head_log_prob(parameters, x).shape == (batch, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_variables_of_one_category(kind, device):
    """Such a variable adds what its category adds, whether it is evaluated, stepped over or drawn."""
    for head in (heads.Categorical(1), heads.Categorical([1, 2, 1])):
        if kind in SHARED_KINDS and isinstance(head.categories, list):
            continue
        model = smallest(kind, 3, 0, head=head, device=device)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.uniform_(0.1, 1.0)
        x = torch.zeros(2, 3, dtype=torch.int64, device=device)
        state, parameters = model.begin(2), {}
        while state.parameters is not None:
            parameters[state.variable] = state.parameters
            state = model.next(state, x[:, state.variable])
        torch.testing.assert_close(torch.cat([parameters[i] for i in range(3)], -1), model(x).flatten(1))
        samples, log_prob = model.sample(5, seed=1, return_log_prob=True)
        torch.testing.assert_close(log_prob, model.log_prob(samples))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["sorted", "rows", "columns", "both", "blocks"])
@pytest.mark.parametrize("sizes", [(17, 0, 70), (1, 0, 70), (17, 70, 0), (17, 0, 0), (0, 0, 70)], ids=str)
def test_products_of_plans_without_elements(sizes, kind, dtype, device, ops):
    """The three products of a mask without rows or columns, whose tensors have no address."""
    batch, inputs, outputs = sizes
    case = masked_case(batch, inputs, outputs, kind, dtype=dtype, device=device)
    grad = torch.randn(batch, outputs, device=device).to(dtype)
    y = ops.masked_linear(case.input, case.weight, case.bias, *case.plan)
    torch.testing.assert_close(y, case.bias.expand(batch, -1) if inputs == 0 else y.new_zeros(batch, outputs))
    dx = ops.masked_linear_grad_input(grad, case.weight, *case.plan)
    dw = ops.masked_linear_grad_weight(grad, case.input, *case.plan)
    assert dx.shape == (batch, inputs) and dw.shape == (outputs, inputs) and not dx.any()
