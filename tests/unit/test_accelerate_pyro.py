"""accelerate on the autoregressive transforms of pyro."""

import grids

grids.skip_module_without("pyro", "pyro")

import copy  # noqa: E402
import functools  # noqa: E402
import pickle  # noqa: E402

import accelerate_cases  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from accelerate_cases import Case  # noqa: E402
from pyro import distributions as dist  # noqa: E402
from pyro.distributions import transforms  # noqa: E402
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN  # noqa: E402
from torch import nn  # noqa: E402

import ar_fast  # noqa: E402

FIXED_SEED = 22


def conditioned(module, context):
    return module if context is None else module.condition(context)


def forward(module, x, context):
    transform = conditioned(module, context)
    y = transform(x)
    return torch.cat([y, transform.log_abs_det_jacobian(x, y)[:, None]], 1)


def inverse(module, y, context):
    """The inverse and log|det| of new data, as log_prob takes them."""
    transform = conditioned(module, context)
    x = transform.inv(y)
    return torch.cat([x, transform.log_abs_det_jacobian(x, y)[:, None]], 1)


def case(name, kind, variables=5, context=0, hidden=(24, 24), param_dims=(1, 1), network=None, **arguments):
    def make():
        own = {"param_dims": list(param_dims), **(network or {})}
        if context:
            net = ConditionalAutoRegressiveNN(variables, context, list(hidden), **own)
        else:
            net = AutoRegressiveNN(variables, list(hidden), **own)
        return kind(net, **arguments)

    tier = "fused" if param_dims == (1, 1) else "incremental"
    return Case(name, make, forward, inverse, variables, context, tier=tier, float32_only=True, one_op=False)


def spline(kind):
    return lambda net, **own: kind(net.input_dim, net, count_bins=4, **own)


AFFINE, ON_CONTEXT = transforms.AffineAutoregressive, transforms.ConditionalAffineAutoregressive
SPLINE, SPLINE_ON_CONTEXT = transforms.SplineAutoregressive, transforms.ConditionalSplineAutoregressive
LINEAR, QUADRATIC = (4, 4, 3, 4), (4, 4, 3)
CASES = [
    case("affine", AFFINE),
    case("stable", AFFINE, stable=True, sigmoid_bias=1.5),
    case("clipped", AFFINE, log_scale_min_clip=-0.01, log_scale_max_clip=0.01),
    case("skip", AFFINE, network={"skip_connections": True}),
    case("one hidden layer", AFFINE, hidden=(24,)),
    case("tanh", AFFINE, network={"nonlinearity": nn.Tanh()}),
    case("permutation", AFFINE, network={"permutation": torch.tensor([2, 0, 1, 4, 3])}),
    case("context", ON_CONTEXT, context=3),
    case("context, stable, skip", ON_CONTEXT, context=3, stable=True, network={"skip_connections": True}),
    case("wide", AFFINE, variables=40, hidden=(60,)),
    case("two variables", AFFINE, variables=2),
    case("spline", spline(SPLINE), param_dims=LINEAR),
    case("quadratic spline", spline(SPLINE), param_dims=QUADRATIC, order="quadratic", bound=2.0),
    case("spline on a context", spline(SPLINE_ON_CONTEXT), param_dims=LINEAR, context=3),
]


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    accelerate_cases.measured_as_faster(monkeypatch)


def ids(case):
    return case.name


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values(case):
    accelerate_cases.check_values(case)


@pytest.mark.parametrize("case", grids.thinned((own for own in CASES if own.tier == "fused"), 4), ids=ids)
def test_values_one_variable_at_a_time(case, monkeypatch):
    accelerate_cases.measured_as_faster(monkeypatch, fused=False)
    accelerate_cases.check_values(case, fused=False)


@pytest.mark.parametrize("case", grids.thinned(CASES, 6), ids=ids)
def test_gradients(case):
    accelerate_cases.check_gradients(case)


@pytest.mark.parametrize("case", grids.thinned(CASES, 6), ids=ids)
def test_copies(case):
    accelerate_cases.check_copies(case)


def test_log_prob_of_new_data_and_of_samples():
    transform = transforms.affine_autoregressive(6, [24])
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(6), torch.ones(6)).to_event(1), [transform])
    x = torch.randn(4, 6)
    expected = flow.log_prob(x)
    ar_fast.accelerate(transform)
    accelerate_cases.assert_close(flow.log_prob(x), expected)
    drawn = flow.rsample((3,))
    accelerate_cases.assert_close(flow.log_prob(drawn), flow.log_prob(drawn.clone()))


def test_the_cache_of_the_forward_pass_stays():
    """A sample's log_prob reads what drawing it left, and does not invert."""
    transform = ar_fast.accelerate(transforms.affine_autoregressive(6, [24]))
    x = torch.randn(4, 6)
    y = transform(x)
    assert transform.inv(y) is x


def test_a_transform_with_a_cached_result_is_accelerated():
    transform = transforms.affine_autoregressive(6, [24])
    transform(torch.randn(4, 6))
    ar_fast.accelerate(transform, strict=True)


@pytest.mark.parametrize("shape", [(3,), (7, 3), (1, 3)])
def test_batch_shapes_of_contexts(shape):
    transform = transforms.conditional_affine_autoregressive(5, 3, [24])
    context, y = torch.randn(shape), torch.randn(7, 5)
    with torch.no_grad():
        expected = inverse(transform, y, context)
        with ar_fast.accelerated(transform):
            accelerate_cases.assert_close(inverse(transform, y, context), expected)


def test_a_copy_of_a_conditioned_transform_uses_its_own_parameters():
    transform = ar_fast.accelerate(transforms.conditional_affine_autoregressive(5, 3, [24]))
    context, y = torch.randn(3), torch.randn(7, 5)
    own = transform.condition(context)
    other = copy.deepcopy(own)
    assert "_inverse" not in other.__dict__
    assert isinstance(other.arn, functools.partial)
    accelerate_cases.perturb(other.arn.func)
    assert not torch.equal(other._inverse(y), own._inverse(y))


@pytest.mark.parametrize("stable", [False, True])
def test_pickles_hold_the_original(stable):
    transform = transforms.affine_autoregressive(6, [24], stable=stable)
    y = torch.randn(3, 6)
    with torch.no_grad():
        expected = transform._inverse(y)
        other = pickle.loads(pickle.dumps(ar_fast.accelerate(transform)))
        assert not any("ar_fast" in name for name in other.__dict__)
        assert torch.equal(other._inverse(y), expected)


@pytest.mark.parametrize("stable", [False, True])
def test_scales_near_their_limits(stable):
    transform = transforms.affine_autoregressive(8, [24], stable=stable)
    with torch.no_grad():
        transform.arn.layers[-1].bias.mul_(20)
        y = torch.randn(20, 8)
        expected = transform._inverse(y)
        with ar_fast.accelerated(transform):
            found = transform._inverse(y)
    assert bool(expected.isfinite().all()) and bool(found.isfinite().all())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_other_conditioners_are_left_with_the_reason():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(torch.zeros(2))
            self.permutation = torch.arange(5)

        def forward(self, x):
            return torch.zeros_like(x), torch.zeros_like(x)

    with pytest.raises(ValueError, match="its conditioner, Network, is of no known form"):
        ar_fast.accelerate(AFFINE(Network()))
