"""MAF and IAF: densities, samples and their gradients, in both directions."""

import copy
import io
import math

import pytest
import torch
from flow_cases import CASES, KINDS, make_context, make_flow, total_probability

from ar_fast.conditioners import stepping
from ar_fast.flows import MAF, Affine, AutoregressiveTransform, Spline
from ar_fast.models import _calls
from ar_fast.reference.transforms import transform_inverse


def normal(z):
    return -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


@pytest.mark.parametrize("kind, context_features", CASES)
def test_the_density_is_that_of_the_noise_times_the_determinant(kind, context_features):
    flow = make_flow(kind, 4, context_features)
    x, context = torch.randn(5, 4, dtype=torch.float64), make_context(context_features, 5)
    for row in range(5):
        own = None if context is None else context[row]
        z, log_det = flow.to_noise(x[row], own)
        jacobian = torch.autograd.functional.jacobian(lambda x, own=own: flow.to_noise(x, own)[0], x[row])
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(log_det, expected)
        torch.testing.assert_close(flow.log_prob(x[row], own), normal(z) + expected)


@pytest.mark.parametrize("univariate", [Affine(), Spline(bins=4)], ids=repr)
@pytest.mark.parametrize("context_features", [0, 2])
@pytest.mark.parametrize("order", [None, [2, 0, 4, 1, 3]])
def test_the_jacobian_has_the_zeros_of_the_mask(univariate, context_features, order):
    own = AutoregressiveTransform(
        5, [40, 30], univariate, "tanh", order=order, context_features=context_features, dtype=torch.float64
    )
    x = torch.randn(5, dtype=torch.float64)
    context = make_context(context_features)
    order = torch.arange(5) if order is None else torch.tensor(order)
    for direction in (own.forward, own.inverse):
        # As one row: the contexts' number is the batch's last dimension.
        def values(x, direction=direction):
            return direction(x[None], None if context is None else context[None])[0][0]

        jacobian = torch.autograd.functional.jacobian(values, x)[order][:, order]
        assert bool((jacobian.triu(1) == 0).all()) and bool((jacobian.diagonal() > 0).all())
        assert bool((jacobian[torch.ones(5, 5).tril(-1) > 0] != 0).all())
        with torch.no_grad():
            log_det = direction(x[None], None if context is None else context[None])[1][0]
        torch.testing.assert_close(log_det, jacobian.diagonal().log().sum())


@pytest.mark.parametrize("kind, context_features", CASES)
@pytest.mark.parametrize("features", [1, 2])
def test_probabilities_integrate_to_one(kind, context_features, features):
    flow = make_flow(kind, features, context_features)
    context = make_context(context_features)
    # The densities of splines have kinks, for which a grid is coarse; those of affine transforms reach far.
    bound, points = (7.0, 701) if kind.endswith("spline") else (24.0, 601)
    if features == 1:
        bound, points = 40.0, 60001
    _, total = total_probability(lambda x: flow.log_prob(x, context), features, bound, points)
    assert float(total) == pytest.approx(1, abs=3e-3 if features == 1 else 2e-2)


@pytest.mark.parametrize("kind, context_features", CASES)
def test_the_two_directions_undo_each_other(kind, context_features):
    flow = make_flow(kind, 6, context_features)
    context = make_context(context_features, 3)
    x = torch.randn(7, 3, 6, dtype=torch.float64)
    for wanted in (False, True):
        with torch.set_grad_enabled(wanted):
            z, log_det = flow.to_noise(x, context)
            again, log_det_back = flow.from_noise(z, context)
        torch.testing.assert_close(again, x)
        torch.testing.assert_close(log_det_back, -log_det)


@pytest.mark.parametrize("kind, context_features", CASES)
def test_sample_and_log_prob_agrees_with_log_prob(kind, context_features):
    flow = make_flow(kind, 4, context_features)
    context = make_context(context_features, 3)
    for wanted in (False, True):
        with torch.set_grad_enabled(wanted):
            x, log_prob = flow.sample_and_log_prob((6,), context, seed=3)
            torch.testing.assert_close(log_prob, flow.log_prob(x, context))
            torch.testing.assert_close(x, flow.rsample(6, context, seed=3))
        assert x.requires_grad == log_prob.requires_grad == wanted
        torch.testing.assert_close(x.detach(), flow.sample(6, context, seed=3))
    assert x.shape == (6, 3, 4) if context_features else (6, 4)


@pytest.mark.parametrize("kind, context_features", CASES)
def test_gradients(kind, context_features):
    flow = make_flow(kind, 3, context_features, hidden_features=(6, 5), transforms=2)
    names = [name for name, _ in flow.named_parameters()]
    context = make_context(context_features, 2)
    x, z = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)

    def call(method, values):
        def of(values, context, *parameters):
            return torch.func.functional_call(
                _Calls(flow),
                {f"flow.{n}": p for n, p in zip(names, parameters, strict=True)},
                (method, values, context),
            )

        inputs = [values, context, *flow.parameters()]
        inputs = [None if own is None else own.detach().clone().requires_grad_() for own in inputs]
        assert torch.autograd.gradcheck(of, inputs, fast_mode=True)

    call("log_prob", x)
    call("from_noise", z)
    call("to_noise", x)


class _Calls(torch.nn.Module):
    """A method of a flow as a forward."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, method, values, context):
        return getattr(self.flow, method)(values, context)


@pytest.mark.parametrize("kind, context_features", CASES)
def test_the_gradient_of_samples_is_that_of_passes_through_the_network(kind, context_features):
    """The inverse's gradient, against one pass per variable whose univariate inverse is the reference's."""
    flow = make_flow(kind, 4, context_features)
    context = make_context(context_features, 5)
    values = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def passes(u):
        for own in reversed(flow.transforms):
            y = u if own.order is None else u[..., own.order]
            x = torch.zeros_like(y)
            for _ in range(4):
                raw = own._outputs(x, context).unflatten(-1, (4, -1))
                x, _ = transform_inverse(raw, y, own.univariate.head, own.univariate.constants)
            u = x if own.back is None else x[..., own.back]
        return u

    found = (flow.to_noise if flow.inverse else flow.from_noise)(values, context)[0]
    expected = passes(values)
    torch.testing.assert_close(found, expected)
    weights, wanted = torch.randn_like(found), [values, *flow.parameters()]
    grads, own = (torch.autograd.grad((weights * result).sum(), wanted) for result in (expected, found))
    for grad, other in zip(grads, own, strict=True):
        torch.testing.assert_close(other, grad)
    assert all(bool(grad.any()) for grad in own)


def test_an_inverse_is_differentiable_once():
    flow = make_flow("MAF affine")
    x = flow.rsample(4, seed=0)
    (grad,) = torch.autograd.grad(x.square().sum(), flow.transforms[0].layers[0].weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("kind, context_features", CASES)
def test_float32_is_near_float64(kind, context_features, device):
    exact = make_flow(kind, 5, context_features).to(device)
    flow = copy.deepcopy(exact).float()
    context = make_context(context_features, 4, dtype=torch.float32)
    context = None if context is None else context.to(device)
    x = torch.randn(4, 5).to(device)
    double = None if context is None else context.double()
    torch.testing.assert_close(
        flow.log_prob(x, context).double(), exact.log_prob(x.double(), double), rtol=0, atol=2e-4
    )
    with torch.no_grad():
        found, expected = flow.from_noise(x, context), exact.from_noise(x.double(), double)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-3, atol=1e-3)
    assert flow.sample(3, context, seed=0).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_the_context_enters_every_conditional(kind):
    flow = make_flow(kind, 3, 2, transforms=1)
    context = make_context(2, 4).requires_grad_()
    x = torch.rand(4, 3, dtype=torch.float64)  # A spline is the identity outside of its interval.
    z = flow.transforms[0](x, context)[0]
    for variable in range(3):
        (grad,) = torch.autograd.grad(z[:, variable].sum(), context, retain_graph=True)
        assert bool((grad != 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_are_the_last_dimensions_of_the_batch(kind):
    flow = make_flow(kind, 3, 2)
    context = make_context(2, 4, 5)
    x = torch.randn(6, 4, 5, 3, dtype=torch.float64)
    every = context.expand(6, 4, 5, 2)
    torch.testing.assert_close(flow.log_prob(x, context), flow.log_prob(x, every))
    one = make_context(2)
    torch.testing.assert_close(flow.log_prob(x, one), flow.log_prob(x, one.expand(6, 4, 5, 2)))
    torch.testing.assert_close(flow.from_noise(x, context)[0], flow.from_noise(x, every)[0])
    assert flow.sample((2, 7), context, seed=0).shape == (2, 7, 4, 5, 3)
    assert flow.sample(context=one, seed=0).shape == (3,)


def test_without_gradients_a_row_does_not_depend_on_the_others(monkeypatch):
    flow = make_flow("MAF spline", 5, 2, dtype=torch.float32)
    z, context = torch.randn(300, 3, 5), make_context(2, 3, dtype=torch.float32)
    with torch.no_grad():
        x, log_det = flow.from_noise(z, context)
        for row in (0, 123):
            own = flow.from_noise(z[row, 1], context[1])
            assert torch.equal(own[0], x[row, 1]) and torch.equal(own[1], log_det[row, 1])
        monkeypatch.setattr(stepping, "_CACHED_BYTES", 1)
        again = flow.from_noise(z, context)
    assert torch.equal(again[0], x) and torch.equal(again[1], log_det)


@pytest.mark.parametrize("kind, context_features", CASES)
@pytest.mark.parametrize("batch", [(20,), (1, 20), (20, 1), (6, 5)])
def test_a_long_evaluation_in_several_calls(kind, context_features, batch, monkeypatch):
    flow = make_flow(kind, 4, context_features)
    x, context = torch.randn(*batch, 4, dtype=torch.float64), make_context(context_features, batch[-1])
    expected = flow.log_prob(x, context)
    calls = []
    own = flow._to_noise
    monkeypatch.setattr(flow, "_to_noise", lambda *arguments: calls.append(1) or own(*arguments))
    monkeypatch.setattr(_calls, "_FEW", 0)
    monkeypatch.setattr(_calls, "_MULTIPLY_ADDS", 5 * sum(parameter.numel() for parameter in flow.parameters()))
    with torch.no_grad():
        found = flow.log_prob(x, context)
    assert len(calls) >= 4
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind, context_features", CASES)
def test_empty_batches(kind, context_features, device):
    flow = make_flow(kind, 3, context_features).to(device)
    context = make_context(context_features, 0)
    context = None if context is None else context.to(device)
    x = torch.zeros(0, 3, dtype=torch.float64, device=device)
    loss = flow.log_prob(x, context)
    assert loss.shape == (0,)
    loss.sum().backward()
    assert all(not bool(parameter.grad.any()) for parameter in flow.parameters())
    assert flow.sample(4 if context_features else 0, context).shape == ((4, 0, 3) if context_features else (0, 3))
    context = None if context is None else make_context(context_features, 4).to(device)
    drawn, log_prob = flow.sample_and_log_prob((2, 0), context)
    assert drawn.shape[:2] == log_prob.shape[:2] == (2, 0)
    drawn.sum().backward()


def test_seeds():
    flow = MAF(3)
    assert torch.equal(flow.sample(5, seed=1), flow.sample(5, seed=1))
    assert not torch.equal(flow.sample(5, seed=1), flow.sample(5, seed=2))
    first, second = (flow.sample(5, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(3)
    first = flow.sample(5)
    assert not torch.equal(first, flow.sample(5))
    torch.manual_seed(3)
    assert torch.equal(first, flow.sample(5))
    state = torch.get_rng_state()
    flow.sample(5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_orders():
    assert [own.order if own.order is None else own.order.tolist() for own in MAF(3, transforms=3).transforms] == [
        None,
        [2, 1, 0],
        None,
    ]
    first, second = (MAF(9, transforms=4, orders="random", order_seed=seed) for seed in (1, 1))
    assert all(torch.equal(a.order, b.order) for a, b in zip(first.transforms, second.transforms, strict=True))
    assert len({tuple(own.order.tolist()) for own in first.transforms}) > 1
    assert MAF(3, transforms=1, orders=[[1, 2, 0]]).transforms[0].order.tolist() == [1, 2, 0]


@pytest.mark.parametrize("context_features", [0, 2])
def test_the_distribution(context_features):
    flow = make_flow("MAF affine", 3, context_features)
    context = make_context(context_features, 4)
    own = flow.distribution(context)
    assert own.has_rsample and own.event_shape == (3,) and own.support.event_dim == 1
    assert own.batch_shape == ((4,) if context_features else ())
    x = own.rsample((5,))
    assert x.requires_grad and not own.sample((5,)).requires_grad
    torch.testing.assert_close(own.log_prob(x), flow.log_prob(x, context))
    wide = own.expand((2, 4))
    assert wide.sample((3,)).shape == (3, 2, 4, 3) and wide.log_prob(wide.sample()).shape == (2, 4)
    assert type(wide) is type(own)
    torch.testing.assert_close(torch.distributions.Independent(own, 0).log_prob(x), own.log_prob(x))


def test_copies_have_their_own_parameters():
    flow = make_flow("MAF affine")
    flow.rsample(3, seed=0).sum().backward()
    stream = io.BytesIO()
    torch.save(flow, stream)
    stream.seek(0)
    expected = flow.sample(3, seed=0)
    for other in (copy.deepcopy(flow), torch.load(stream, weights_only=False)):
        assert torch.equal(other.sample(3, seed=0), expected)
        with torch.no_grad():
            other.transforms[0].layers[0].bias.add_(1)
        other.rsample(3, seed=0).sum().backward()
        assert not torch.equal(other.sample(3, seed=0), expected) and torch.equal(flow.sample(3, seed=0), expected)


def test_autocast_changes_nothing():
    flow, x = MAF(4, 2), torch.randn(3, 4)
    context = torch.randn(3, 2)
    expected, drawn = flow.log_prob(x, context), flow.sample(2, context, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flow.log_prob(x, context), expected)
        assert torch.equal(flow.sample(2, context, seed=0), drawn)
        # A network in front of the flow gives 16-bit contexts.
        assert torch.isfinite(flow.log_prob(x, context.bfloat16())).all()


@pytest.mark.parametrize("kind", ["MAF affine", "MAF spline", "IAF affine"])
def test_it_compiles_without_a_graph_break(kind):
    flow = make_flow(kind, 3, 2)
    x, context = torch.randn(4, 3, dtype=torch.float64), make_context(2, 4)
    call = flow.from_noise if flow.inverse else flow.log_prob
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, context), call(x, context))


def test_univariate_transforms_equal_zuko():
    zuko = pytest.importorskip("zuko", reason="needs the extra zuko")
    x = 4 * torch.randn(50, dtype=torch.float64)
    raw = 3 * torch.randn(50, 2, dtype=torch.float64)
    theirs = zuko.transforms.MonotonicAffineTransform(raw[:, 0], raw[:, 1], slope=1e-2)
    found = Affine(slope=1e-2).forward(x, raw)
    torch.testing.assert_close(found, (theirs(x), theirs.log_abs_det_jacobian(x, theirs(x))))
    raw = 3 * torch.randn(50, 11, dtype=torch.float64)
    theirs = zuko.transforms.MonotonicRQSTransform(*raw.split([4, 4, 3], -1), bound=3.0, slope=1e-2)
    found = Spline(bins=4, bound=3.0, slope=1e-2).forward(x, raw)
    torch.testing.assert_close(found, (theirs(x), theirs.log_abs_det_jacobian(x, theirs(x))))


@pytest.mark.parametrize("kind, context_features", CASES)
def test_large_layers_equal_small_ones(kind, context_features):
    """They run on other ops."""
    flow = make_flow(kind, 4, context_features)
    x, context = torch.randn(6, 3, 4, dtype=torch.float64), make_context(context_features, 3)
    expected = flow.log_prob(x, context)
    grads = torch.autograd.grad(expected.sum(), list(flow.parameters()))
    for own in flow.transforms:
        own._small = False
    found = flow.log_prob(x, context)
    torch.testing.assert_close(found, expected)
    for grad, own in zip(grads, torch.autograd.grad(found.sum(), list(flow.parameters())), strict=True):
        torch.testing.assert_close(own, grad)


def test_layers_of_many_units():
    flow = MAF(3, transforms=1, hidden_features=(150,), dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    z, log_det = flow.to_noise(x)
    again, back = flow.from_noise(z)
    torch.testing.assert_close(again, x)
    torch.testing.assert_close(back, -log_det)
