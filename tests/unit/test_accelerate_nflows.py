"""accelerate on nflows and normflows."""

import grids

grids.skip_module_without("nflows", "nflows", "normflows")

import functools  # noqa: E402
import time  # noqa: E402
from dataclasses import replace  # noqa: E402

import accelerate_cases  # noqa: E402
import nflows.flows  # noqa: E402
import nflows.transforms as nt  # noqa: E402
import normflows as nf  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from accelerate_cases import Case  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import ar_fast  # noqa: E402
from ar_fast.conditioners import stepping  # noqa: E402

FIXED_SEED = 21


def both(result):
    """The values and log|det| in one tensor."""
    return torch.cat([result[0], result[1][:, None]], 1)


def randomized(module):
    """nflows starts residual blocks near zero, and normflows starts splines at the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() < 2 else parameter.shape[1] ** -0.5))
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
    return module


def case(kind, name, *, draw=torch.randn, tier="fused", variables=5, context=0, hidden=24, **arguments):
    if context:
        arguments["context_features"] = context

    def make():
        return randomized(kind(features=variables, hidden_features=hidden, **arguments))

    return Case(
        f"{kind.__module__.split('.')[0]} {kind.__name__} {name}",
        make,
        lambda t, x, c: both(t(x, c)),
        lambda t, y, c: both(t.inverse(y, c)),
        variables,
        context,
        draw,
        tier,
    )


AFFINE = nt.MaskedAffineAutoregressiveTransform
SPLINE = nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
NORMFLOWS_AFFINE = nf.flows.MaskedAffineAutoregressive
NORMFLOWS_SPLINE = nf.flows.neural_spline.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive
OPTIONS = {
    "default": {},
    "feedforward": {"use_residual_blocks": False},
    "context": {"context": 3},
    "random masks": {"use_residual_blocks": False, "random_mask": True},
    "batch norm": {"use_batch_norm": True, "tier": "incremental"},
    "batch norm, feedforward": {"use_batch_norm": True, "use_residual_blocks": False, "tier": "incremental"},
    "dropout": {"dropout_probability": 0.3},
    "tanh": {"activation": torch.tanh},
    "elu, one block": {"activation": F.elu, "num_blocks": 1},
    "activation module": {"activation": nn.Softplus()},
    "wide": {"variables": 40},
    "one variable": {"variables": 1},
    "two variables": {"variables": 2},
}
CASES = [case(kind, name, **own) for kind in (AFFINE, NORMFLOWS_AFFINE) for name, own in OPTIONS.items()]
# There the context is a gate.
CASES = [
    replace(own, tier="incremental") if own.name == "normflows MaskedAffineAutoregressive context" else own
    for own in CASES
]
CASES += [
    case(AFFINE, "in place, feedforward", use_residual_blocks=False, activation=nn.ReLU(inplace=True)),
    case(AFFINE, "in place on what is used again", activation=torch.relu_, tier="two agree"),
    case(AFFINE, "feedforward and context", use_residual_blocks=False, context=3),
    case(SPLINE, "tails", tails="linear", tail_bound=2.0, num_bins=4),
    case(SPLINE, "context", tails="linear", tail_bound=2.0, context=3),
    case(SPLINE, "no tails", draw=torch.rand, num_bins=4),
    case(nt.MaskedPiecewiseLinearAutoregressiveTransform, "", tier="incremental", draw=torch.rand, num_bins=4),
    case(nt.MaskedPiecewiseQuadraticAutoregressiveTransform, "", tier="incremental", draw=torch.rand, num_bins=4),
    case(nt.MaskedPiecewiseQuadraticAutoregressiveTransform, "tails", tier="incremental", tails="linear", num_bins=4),
    case(nt.MaskedPiecewiseCubicAutoregressiveTransform, "", tier="incremental", draw=torch.rand, num_bins=4),
    case(NORMFLOWS_SPLINE, "tails", tails="linear", num_bins=4),
    case(NORMFLOWS_SPLINE, "circular", tier="incremental", tails="circular", num_bins=4),
    case(NORMFLOWS_SPLINE, "permuted", tails="linear", permute_mask=True),
    # The input passes through a sine and a cosine before the first layer.
    case(NORMFLOWS_SPLINE, "some circular", tails=["circular", *["linear"] * 4], tier="two agree", num_bins=4),
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


@pytest.mark.parametrize(
    "case", grids.thinned((own for own in CASES if own.tier == "fused" and own.variables > 1), 3), ids=ids
)
def test_the_network_by_itself(case, monkeypatch):
    accelerate_cases.check_network_by_itself(case, monkeypatch)


@pytest.mark.parametrize("case", grids.thinned(CASES, 6), ids=ids)
def test_gradients(case):
    accelerate_cases.check_gradients(case)


@pytest.mark.parametrize("case", grids.thinned((own for own in CASES if own.variables > 1), 6), ids=ids)
def test_second_derivatives(case):
    accelerate_cases.check_second_order(case)


@pytest.mark.parametrize("case", grids.thinned((own for own in CASES if own.variables > 1), 6), ids=ids)
def test_copies(case):
    accelerate_cases.check_copies(case)


def test_a_network_too_large_for_the_op_runs_with_its_hooks_and_in_its_mode_and_can_be_replaced():
    transform = randomized(AFFINE(5, 140, dropout_probability=0.5))
    x = torch.randn(9, 5)
    ar_fast.accelerate(transform)
    (part,) = (
        part for part in ar_fast.acceleration_report(transform).parts if part.replaced == "forward" and not part.name
    )
    assert part.by.startswith("its network, then one op for affine_softplus")
    seen = []
    transform.autoregressive_net.register_forward_hook(lambda *arguments: seen.append(1))
    for network in (transform.autoregressive_net, randomized(AFFINE(5, 20)).autoregressive_net):
        transform.autoregressive_net = network
        for mode in (True, False):
            transform.train(mode)
            torch.manual_seed(0)
            expected = AFFINE.forward(transform, x)
            torch.manual_seed(0)
            for own, other in zip(transform(x), expected, strict=True):
                accelerate_cases.assert_close(own, other)
    assert seen == [1] * 4


def test_a_flow_draws_the_same_noise():
    flow = nflows.flows.MaskedAutoregressiveFlow(6, 16, 3, 2, use_random_permutations=True).eval()
    ar_fast.accelerate(flow)
    torch.manual_seed(2)
    found = flow.sample(10)
    torch.manual_seed(2)
    accelerate_cases.assert_close(found, ar_fast.restore(flow).sample(10))


def test_log_prob_and_gradients_of_normflows_go_through_the_inverse():
    def log_prob(flow, x, _):
        return flow.log_prob(x)

    def make():
        flows = [nf.flows.MaskedAffineAutoregressive(5, 24), nf.flows.Permute(5, mode="swap")]
        flows.append(nf.flows.AutoregressiveRationalQuadraticSpline(5, 1, 24, init_identity=False))
        return nf.NormalizingFlow(nf.distributions.DiagGaussian(5, trainable=False), flows)

    accelerate_cases.check_values(Case("", make, log_prob, log_prob))
    accelerate_cases.check_gradients(Case("", make, log_prob, log_prob))


def test_large_batches_are_inverted_in_chunks(monkeypatch):
    transform = randomized(nt.MaskedAffineAutoregressiveTransform(4, 16, context_features=2))
    ar_fast.accelerate(transform)
    y, context = torch.randn(300, 4), torch.randn(3, 2).repeat_interleave(100, 0)
    with torch.no_grad():
        expected = transform.inverse(y, context)
        monkeypatch.setattr(stepping, "_CACHED_BYTES", 1)
        found = transform.inverse(y, context)
    for own, other in zip(found, expected, strict=True):
        assert torch.equal(own, other)


def test_repeated_contexts():
    transform = AFFINE(5, 24, context_features=3)
    c = torch.randn(3, 3).repeat_interleave(4, 0)
    y = torch.randn(12, 5)
    with torch.no_grad():
        expected = transform.inverse(y, c)
        with ar_fast.accelerated(transform):
            for own, other in zip(transform.inverse(y, c), expected, strict=True):
                accelerate_cases.assert_close(own, other)
            same = transform.inverse(y, c[:1].expand(12, 3))
    for own, other in zip(same, transform.inverse(y, c[:1].expand(12, 3)), strict=True):
        accelerate_cases.assert_close(own, other)


@pytest.mark.parametrize("kind", [AFFINE, NORMFLOWS_AFFINE])
def test_variables_that_do_not_see_the_context_are_named(kind):
    transform = ar_fast.accelerate(kind(5, 24, context_features=3))
    (part,) = (part for part in ar_fast.acceleration_report(transform).parts if part.replaced == "inverse")
    assert part.notes[0] == "kept: check_autoregressive finds that variables 0 do not see the context"


@pytest.mark.parametrize("options", [{"dropout_probability": 0.5}, {"use_batch_norm": True}])
def test_in_training_mode_dropout_and_batch_norm_run_the_original(options):
    transform = randomized(AFFINE(5, 24, **options)).train()
    y = torch.randn(9, 5)

    def run():
        torch.manual_seed(5)
        with torch.no_grad():
            result = both(transform.inverse(y))
        statistics = [buffer.clone() for buffer in transform.buffers()]
        return result, statistics

    start = {name: buffer.clone() for name, buffer in transform.named_buffers()}
    expected, statistics = run()
    transform.load_state_dict(start, strict=False)
    ar_fast.accelerate(transform)
    found, own_statistics = run()
    accelerate_cases.assert_close(found, expected)
    for own, other in zip(own_statistics, statistics, strict=True):
        torch.testing.assert_close(own, other)


class Counting(nn.Module):
    """A conditioner of no known form, whose last variable depends on the first only."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1))
        self.calls = 0

    def forward(self, inputs, context=None):
        self.calls += 1
        moved = torch.zeros_like(inputs)
        moved[:, -1] = inputs[:, 0] * self.weight
        return moved.repeat_interleave(2, 1)


def test_passes_end_where_two_agree():
    transform = AFFINE(8, 16)
    transform.autoregressive_net = Counting()
    y = torch.randn(5, 8)
    with torch.no_grad():
        expected = both(transform.inverse(y))
    assert transform.autoregressive_net.calls == 8
    with ar_fast.accelerated(transform):
        # The first call is compared with the original's.
        for calls in (3 + 8, 3):
            transform.autoregressive_net.calls = 0
            with torch.no_grad():
                assert torch.equal(both(transform.inverse(y)), expected)
            assert transform.autoregressive_net.calls == calls
        # With a graph, further passes change the gradient.
        transform.inverse(y)
        assert transform.autoregressive_net.calls == 3 + 8


def test_other_numbers_of_values_are_refused_as_before():
    transform = ar_fast.accelerate(AFFINE(5, 24))
    with pytest.raises(RuntimeError):
        transform.inverse(torch.randn(3, 4))
    with pytest.raises(RuntimeError):
        transform.inverse(torch.randn(3, 5).double())


class Forked(AFFINE):
    """A copy of nflows with another scale."""

    def _elementwise_forward(self, inputs, parameters):
        scale, shift = self._unconstrained_scale_and_shift(parameters)
        scale = torch.sigmoid(scale + 2.0) + self._epsilon
        return scale * inputs + shift, scale.log().sum(1)

    def _elementwise_inverse(self, inputs, parameters):
        scale, shift = self._unconstrained_scale_and_shift(parameters)
        scale = torch.sigmoid(scale + 2.0) + self._epsilon
        return (inputs - shift) / scale, -scale.log().sum(1)


class OtherLoop(AFFINE):
    """Its inverse ends before it is one, and its passes are slow, as all are on a busy machine."""

    def _elementwise_inverse(self, inputs, parameters):
        time.sleep(0.05)
        return super()._elementwise_inverse(inputs, parameters)

    def inverse(self, inputs, context=None):
        outputs = torch.zeros_like(inputs)
        for _ in range(2):
            outputs, log_det = self._elementwise_inverse(inputs, self.autoregressive_net(outputs, context))
        return outputs, log_det


def test_copies_of_the_library():
    accelerate_cases.check_values(case(Forked, "", context=3))
    transform = randomized(OtherLoop(5, 24)).eval()
    y = torch.randn(3, 5)
    with torch.no_grad():
        expected = both(transform.inverse(y))
        ar_fast.accelerate(transform)
        accelerate_cases.assert_close(both(transform.inverse(y)), expected)
        assert "its inverse differs" in str(ar_fast.acceleration_report(transform))


@pytest.mark.full
@pytest.mark.parametrize("kind", [AFFINE, functools.partial(SPLINE, tails="linear", tail_bound=3.0)])
def test_256_variables(kind):
    transform = kind(features=256, hidden_features=300).eval()
    y = torch.randn(3, 256)
    with torch.no_grad():
        expected = both(transform.inverse(y))
        with ar_fast.accelerated(transform):
            accelerate_cases.assert_close(both(transform.inverse(y)), expected, 10)
