"""accelerate on the flows of zuko."""

import grids

grids.skip_module_without("zuko", "zuko")

import copy  # noqa: E402
import pickle  # noqa: E402

import accelerate_cases  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import zuko  # noqa: E402
import zuko.bayesian  # noqa: E402
from accelerate_cases import Case  # noqa: E402
from torch import nn  # noqa: E402

import ar_fast  # noqa: E402

FIXED_SEED = 20


def flow_case(name, kind, variables=5, context=0, tier="fused", **arguments):
    def make():
        return kind(variables, context, transforms=2, hidden_features=(24, 24), **arguments)

    def log_prob(flow, x, c):
        return flow(c).log_prob(x)

    def inverse(flow, z, c):
        return flow(c).transform.inv(z)

    return Case(name, make, log_prob, inverse, variables, context, tier=tier)


def dag():
    adjacency = torch.eye(5, dtype=torch.bool)
    for child, parent in ((1, 0), (2, 0), (4, 2), (4, 1)):
        adjacency[child, parent] = True
    return adjacency


def transform_case(name, variables=5, context=0, tier="fused", **arguments):
    def make():
        return zuko.flows.MaskedAutoregressiveTransform(variables, context, hidden_features=(24, 24), **arguments)

    def forward(transform, x, c):
        return transform(c).call_and_ladj(x)[0]

    def inverse(transform, y, c):
        return transform(c).inv(y)

    return Case(name, make, forward, inverse, variables, context, tier=tier)


MAF, NSF = zuko.flows.MAF, zuko.flows.NSF
CASES = [
    flow_case("maf", MAF),
    flow_case("context", MAF, context=3),
    flow_case("randperm", MAF, randperm=True),
    flow_case("elu", MAF, activation=nn.ELU),
    flow_case("tanh and residual", MAF, activation=nn.Tanh, residual=True),
    flow_case("residual and context", MAF, context=3, residual=True),
    flow_case("passes", MAF, passes=2),
    flow_case("three passes", MAF, passes=3, randperm=True),
    flow_case("one variable more", MAF, variables=2),
    flow_case("wide", MAF, variables=40),
    flow_case("nsf", NSF),
    flow_case("nsf context", NSF, context=2, bins=4, slope=1e-2),
    flow_case("ncsf", zuko.flows.NCSF, tier="incremental", bins=4),
    transform_case("adjacency", tier="incremental", adjacency=dag()),
    transform_case(
        "adjacency with context",
        context=3,
        tier="incremental",
        adjacency=torch.cat([dag(), torch.rand(5, 3) < 0.5], 1),
        residual=True,
    ),
    transform_case(
        "slope",
        univariate=lambda *phi: zuko.transforms.MonotonicAffineTransform(*phi, slope=0.1),
    ),
    transform_case("order", order=torch.tensor([3, 0, 4, 1, 2])),
    transform_case("custom activation", tier="incremental", activation=lambda: Sine()),
]
BISECTED = [
    flow_case("naf", zuko.flows.NAF, variables=3),
    flow_case("unaf", zuko.flows.UNAF, variables=3),
    flow_case("sospf", zuko.flows.SOSPF, variables=3),
    flow_case("bpf", zuko.flows.BPF, variables=3),
]


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


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


@pytest.mark.parametrize("case", grids.thinned((own for own in CASES if own.tier == "fused"), 3), ids=ids)
def test_the_network_by_itself(case, monkeypatch):
    accelerate_cases.check_network_by_itself(case, monkeypatch)


@pytest.mark.parametrize("case", grids.thinned(CASES, 6), ids=ids)
def test_gradients(case):
    accelerate_cases.check_gradients(case)


@pytest.mark.parametrize("case", grids.thinned(CASES, 6), ids=ids)
def test_second_derivatives(case):
    accelerate_cases.check_second_order(case)


@pytest.mark.parametrize("case", grids.thinned(CASES, 6), ids=ids)
def test_copies(case):
    accelerate_cases.check_copies(case)


@pytest.mark.parametrize("case", grids.thinned(BISECTED, 4), ids=ids)
def test_univariate_inverses_by_bisection(case):
    """Their inverse is exact to 1e-6 only, and the bisection may end on the other side of a number."""
    flow = case.make().eval()
    x, context = case.values()
    with torch.no_grad():
        forward, inverse = case.forward(flow, x, context), case.inverse(flow, x, context)
        with ar_fast.accelerated(flow):
            report = ar_fast.acceleration_report(flow)
            assert not report.left, str(report)
            torch.testing.assert_close(case.forward(flow, x, context), forward, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(case.inverse(flow, x, context), inverse, rtol=1e-4, atol=1e-4)


def test_gradients_of_parametric_univariate_transforms():
    case = BISECTED[0]
    flow = case.make()
    x, context = case.values()
    original = accelerate_cases.gradients(case.inverse, flow, x, context)
    with ar_fast.accelerated(flow):
        found = accelerate_cases.gradients(case.inverse, flow, x, context)
    for own, other in zip(found, original, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-2, atol=1e-3 * float(other.abs().max()) + 1e-6)


@pytest.mark.parametrize("shapes", [((7, 5), (3,)), ((4, 7, 5), (7, 3)), ((5,), (7, 3)), ((4, 1, 5), (7, 3))])
def test_batch_shapes_of_values_and_context(shapes):
    flow = MAF(5, 3, transforms=1, hidden_features=(16,))
    z, c = (torch.randn(shape) for shape in shapes)
    with torch.no_grad():
        expected = flow(c).transform.inv(z)
        with ar_fast.accelerated(flow):
            found = flow(c).transform.inv(z)
    assert found.shape == expected.shape
    accelerate_cases.assert_close(found, expected)


def test_sampling_draws_the_same_noise():
    flow = ar_fast.accelerate(MAF(5, 3, transforms=2, hidden_features=(16,)))
    c = torch.randn(2, 3)
    torch.manual_seed(1)
    found = flow(c).sample((4,))
    x, log_prob = flow(c).rsample_and_log_prob((4,))
    assert x.shape == (4, 2, 5) and log_prob.shape == (4, 2)
    torch.manual_seed(1)
    accelerate_cases.assert_close(found, ar_fast.restore(flow)(c).sample((4,)))


def test_gradient_of_the_inverse_in_float64():
    transform = zuko.flows.MaskedAutoregressiveTransform(3, 2, hidden_features=(8,), activation=nn.Tanh).double()
    ar_fast.accelerate(transform)
    y, c = (torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (3, 2))
    assert torch.autograd.gradcheck(lambda y, c: transform(c).inv(y), (y, c))


def test_fewer_passes_than_the_masks_need_stay_the_librarys_own():
    transform = zuko.flows.MaskedAutoregressiveTransform(5, hidden_features=(16,))
    transform.passes = 2
    y = torch.randn(4, 5)
    with torch.no_grad():
        expected = transform().inv(y)
        with ar_fast.accelerated(transform):
            assert "2 passes where its masks need 5" in str(ar_fast.acceleration_report(transform))
            assert torch.equal(transform().inv(y), expected)


def test_bayesian_flow():
    """BayesianModel replaces ``forward`` on the layers and puts back what it found."""
    flow = ar_fast.accelerate(MAF(4, transforms=1, hidden_features=(16,)))
    model = zuko.bayesian.BayesianModel(flow, include_params="**")
    x = torch.randn(6, 4)
    with model.reparameterize(local_trick=True) as own:
        own().log_prob(x).sum().backward()
    layer = flow.transform.transforms[0].hyper[0]
    assert layer.forward.__name__ == "forward" and type(layer) is zuko.nn.MaskedLinear
    assert model.sample_model()().log_prob(x).shape == (6,)


def test_loading_another_order():
    """A state_dict holds the masks: with them the schedule of the inverse changes."""
    flow, other = (MAF(6, transforms=2, randperm=True, hidden_features=(16,)) for _ in range(2))
    ar_fast.accelerate(flow)
    z = torch.randn(5, 6)
    with torch.no_grad():
        flow().transform.inv(z)
        for assign in (False, True):
            flow.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
            accelerate_cases.assert_close(flow().transform.inv(z), other().transform.inv(z))
            accelerate_cases.assert_close(flow().log_prob(z), other().log_prob(z))


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_scales_near_their_limits(scale):
    flow = MAF(8, transforms=2, hidden_features=(16,))
    with torch.no_grad():
        for transform in flow.transform.transforms:
            transform.hyper[-1].bias.mul_(scale)
        z = torch.randn(20, 8)
        expected = flow().transform.inv(z)
        with ar_fast.accelerated(flow):
            found = flow().transform.inv(z)
    assert bool(expected.isfinite().all()) and bool(found.isfinite().all())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_distributions_copy_and_pickle_as_the_originals():
    flow = MAF(5, 3, transforms=2, hidden_features=(16,))
    c, z = torch.randn(7, 3), torch.randn(7, 5)
    with torch.no_grad():
        expected = flow(c).transform.inv(z)
        ar_fast.accelerate(flow)
        own = flow(c)
        for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
            assert not any("ar_fast" in name for part in other.transform.transforms for name in part.__dict__)
            accelerate_cases.assert_close(other.transform.inv(z), expected)


@pytest.mark.full
def test_256_variables():
    accelerate_cases.check_values(flow_case("", MAF, variables=256), by="its network, then one op for")
