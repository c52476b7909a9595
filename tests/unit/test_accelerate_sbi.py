"""accelerate on the posteriors of sbi, and its estimators accelerated before they are trained."""

import grids

grids.skip_module_without("sbi", "sbi", "nflows", "zuko")

import contextlib  # noqa: E402
import copy  # noqa: E402
import functools  # noqa: E402
import io  # noqa: E402
import pickle  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import textwrap  # noqa: E402

import accelerate_cases  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from sbi.inference import NLE, NPE, EnsemblePosterior, MCMCPosterior  # noqa: E402
from sbi.utils import BoxUniform  # noqa: E402

import ar_fast  # noqa: E402
from ar_fast.interop import posteriors as module  # noqa: E402
from ar_fast.interop.sbi import builder  # noqa: E402

FIXED_SEED = 24
pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore"),
]
AUTOREGRESSIVE = ("maf", "maf_rqs", "zuko_maf")
KINDS = ("direct", "mcmc", "rejection", "importance", "vi")


@functools.cache
def simulated():
    generator = torch.Generator().manual_seed(3)
    prior = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
    theta = 4 * torch.rand(200, 2, generator=generator) - 2
    return prior, theta, theta + 0.3 * torch.randn(200, 2, generator=generator)


def train(trainer, density_estimator, epochs=2):
    prior, theta, x = simulated()
    torch.manual_seed(1)
    own = trainer(prior, density_estimator=density_estimator, show_progress_bars=False)
    with contextlib.redirect_stdout(io.StringIO()):
        own.append_simulations(theta, x).train(max_num_epochs=epochs, training_batch_size=50)
    return own


@functools.cache
def trained(trainer, model):
    return train(trainer, model)


def make(trainer, model, sample_with):
    return copy.deepcopy(trained(trainer, model).build_posterior(sample_with=sample_with))


@pytest.fixture
def faster(monkeypatch):
    accelerate_cases.measured_as_faster(monkeypatch)


def sample(posterior, x):
    torch.manual_seed(5)
    return posterior.sample((7,), x=x, show_progress_bars=False)


@pytest.mark.parametrize("model", AUTOREGRESSIVE)
@pytest.mark.parametrize("sample_with", KINDS)
@pytest.mark.parametrize("trainer", [NPE, NLE])
def test_every_posterior(trainer, sample_with, model, faster):
    if trainer is NLE and sample_with == "direct":
        pytest.skip("NLE has no direct posterior")
    posterior = make(trainer, model, sample_with)
    _, theta, data = simulated()
    x = data[:1]
    before = posterior.potential(theta[:6], x=x)
    estimator = next(iter(module.modules_of(posterior).values()))
    keys = list(estimator.state_dict())
    assert ar_fast.accelerate(posterior) is posterior
    report = ar_fast.acceleration_report(posterior)
    inverses = [part for part in report.parts if part.replaced == "inverse"]
    assert len(inverses) >= 5 and not report.left, str(report)
    assert all("fused pass" in part.by for part in inverses if "_estimator" in part.name), str(report)
    assert inverses[0].name.startswith("potential_fn."), inverses[0].name
    torch.testing.assert_close(posterior.potential(theta[:6], x=x), before, rtol=1e-4, atol=1e-4)
    assert list(estimator.state_dict()) == keys
    with pytest.warns(UserWarning, match="accelerated already"):
        ar_fast.accelerate(posterior)
    if sample_with == "direct":
        drawn = sample(posterior, x)
        assert ar_fast.restore(posterior) is posterior
        torch.testing.assert_close(drawn, sample(posterior, x), rtol=1e-3, atol=1e-3)
    else:
        ar_fast.restore(posterior)
    assert torch.equal(posterior.potential(theta[:6], x=x), before)
    with pytest.raises(ValueError, match="must be one that accelerate was called with"):
        ar_fast.acceleration_report(posterior)


@pytest.mark.parametrize("model", AUTOREGRESSIVE)
def test_one_inverse_call_for_each_transform(model, faster, monkeypatch):
    """Draws take the arithmetic of one pass: the conditioner itself does not run."""
    posterior = ar_fast.accelerate(make(NPE, model, "direct"))
    calls = []
    for part in posterior.posterior_estimator.modules():
        if type(part).__name__ == "MaskedLinear":
            part.register_forward_hook(lambda *arguments: calls.append(1))
    drawn = posterior.posterior_estimator.sample((50,), simulated()[2][:3])
    assert drawn.shape == (50, 3, 2)
    # Hooks must run as often as in the original, so with them its own passes run.
    assert calls
    calls.clear()
    for part in posterior.posterior_estimator.modules():
        part._forward_hooks.clear()
    with monkeypatch.context() as patch:
        from ar_fast import functional

        used, own = [], functional.call
        patch.setattr(functional, "call", lambda op, *args: used.append((op, len(args[0]))) or own(op, *args))
        posterior.posterior_estimator.sample((50,), simulated()[2][:3])
    assert [call for call in used if call[0] == "masked_mlp_sample"] == [("masked_mlp_sample", 150)] * 5


@pytest.mark.parametrize("sample_with", ["mcmc", "rejection", "importance", "vi"])
def test_posteriors_of_likelihoods_still_sample(sample_with, faster):
    posterior = ar_fast.accelerate(make(NLE, "maf", sample_with))
    x = simulated()[2][:1]
    if sample_with == "vi":
        posterior.set_default_x(x)
        # Its training walks through the attributes of the modules, to detach what is in them.
        posterior.train(max_num_iters=5, show_progress_bar=False, quality_control=False)
    options = {"warmup_steps": 2, "thin": 1, "num_chains": 2} if sample_with == "mcmc" else {}
    drawn = posterior.sample((6,), x=x, show_progress_bars=False, **options)
    assert drawn.shape == (6, 2) and bool(drawn.isfinite().all())


def test_ensembles_and_coupling_flows(faster):
    """What is no autoregressive flow is named and left."""
    ensemble = EnsemblePosterior([make(NPE, "maf", "direct"), make(NPE, "nsf", "direct")])
    ar_fast.accelerate(ensemble)
    report = ar_fast.acceleration_report(ensemble)
    assert {part.name.split(".")[1] for part in report.parts} == {"0"}
    assert len(report.left) == 5 and all("posteriors.1" in own.name for own in report.left)
    assert all("coupling transform, not autoregressive" in own.reason for own in report.left)
    assert "PiecewiseRationalQuadraticCouplingTransform left: it is a coupling transform" in str(report)
    assert sample(ensemble, simulated()[2][:1]).shape == (7, 2)
    ar_fast.restore(ensemble)
    with pytest.raises(ValueError, match=r"under strict every part .* posteriors.1.* coupling"):
        ar_fast.accelerate(ensemble, strict=True)
    with pytest.raises(ValueError, match="accelerate was called with"):
        ar_fast.acceleration_report(ensemble)


@pytest.mark.parametrize("model", ["nsf", "zuko_nice"])
def test_coupling_flows_alone_are_refused(model, faster):
    posterior = make(NPE, model, "direct")
    with pytest.raises(ValueError, match=r"got DirectPosterior with none that can be accelerated: .* coupling"):
        ar_fast.accelerate(posterior)
    with pytest.raises(ValueError, match="coupling transform, not autoregressive"):
        train(NPE, builder(model))


def test_a_posterior_that_proposes_is_accelerated_too(faster):
    own = make(NLE, "maf", "mcmc")
    posterior = MCMCPosterior(own.potential_fn, proposal=make(NPE, "maf", "direct"))
    assert sorted(module.modules_of(posterior)) == [
        "potential_fn.likelihood_estimator",
        "proposal.potential_fn.posterior_estimator",
    ]


@pytest.mark.parametrize("model", AUTOREGRESSIVE)
@pytest.mark.parametrize("trainer", [NPE, NLE])
def test_training_an_accelerated_estimator(trainer, model, faster):
    """The same weights, up to rounding, as sbi's own training; and the posterior, which sbi deep-copies, is fast."""
    own = train(trainer, builder(model, likelihood=trainer is NLE))
    other = trained(trainer, model)
    assert [made.optimizer.param_groups[0]["fused"] for made in (own, other)] == [True, None]
    for name, tensor in own._neural_net.state_dict().items():
        torch.testing.assert_close(tensor, other._neural_net.state_dict()[name], rtol=1e-2, atol=1e-3)
    posterior = own.build_posterior()
    estimator = next(iter(module.modules_of(posterior).values()))
    assert estimator is not own._neural_net
    report = ar_fast.acceleration_report(posterior)
    assert any("fused pass" in part.by for part in report.parts)
    _, theta, x = simulated()
    expected = other.build_posterior().potential(theta[:5], x=x[:1])
    torch.testing.assert_close(posterior.potential(theta[:5], x=x[:1]), expected, rtol=2e-2, atol=2e-2)


def test_pickles_hold_the_original(faster, tmp_path):
    posterior = ar_fast.accelerate(make(NPE, "maf", "direct"))
    x = simulated()[2][:1]
    drawn = sample(posterior, x)
    path = tmp_path / "posterior.pkl"
    path.write_bytes(pickle.dumps(posterior))
    script = f"""
        import pickle, sys
        sys.modules["ar_fast"] = None  # so that it cannot be imported
        posterior = pickle.loads(open({str(path)!r}, "rb").read())
        assert not any("ar_fast" in key for part in posterior.posterior_estimator.modules() for key in vars(part))
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)], check=True)
    again = copy.deepcopy(posterior)
    assert ar_fast.acceleration_report(again).parts
    torch.testing.assert_close(sample(again, x), drawn)


def test_a_scope(faster):
    posterior = make(NPE, "maf", "direct")
    with ar_fast.accelerated(posterior):
        assert ar_fast.acceleration_report(posterior).parts
        with ar_fast.accelerated(posterior):
            pass
        assert ar_fast.acceleration_report(posterior).parts
    with pytest.raises(ValueError, match="accelerate was called with"):
        ar_fast.acceleration_report(posterior)
