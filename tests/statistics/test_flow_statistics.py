"""Flows: their samples follow their densities, and training fits a density that no Gaussian does."""

import math

import pytest
import torch
from chi_square import LEAST_P
from flow_cases import CASES, make_context, make_flow, total_probability
from scipy import stats

from ar_fast.flows import MAF

FIXED_SEED = 20251


@pytest.mark.parametrize("kind, context_features", CASES)
def test_samples_follow_the_density(kind, context_features):
    """In one dimension the distribution function of the samples is uniform."""
    flow = make_flow(kind, 1, context_features)
    context = make_context(context_features)
    axis, total = total_probability(lambda x: flow.log_prob(x, context), 1, bound=14.0, points=40001)
    density = flow.log_prob(axis[:, None], context).detach().exp()
    below = torch.cumulative_trapezoid(density, axis) / total
    x = flow.sample(4000, context, seed=1)[:, 0]
    uniform = below[torch.searchsorted(axis, x).clamp(1, len(below)) - 1]
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > LEAST_P


@pytest.mark.parametrize("kind, context_features", CASES)
def test_the_noise_of_samples_is_normal(kind, context_features):
    flow = make_flow(kind, 3, context_features)
    context = make_context(context_features, 2)
    x = flow.sample((3000,), context, seed=2)
    z = flow.to_noise(x, context)[0].detach().reshape(-1, 3)
    for variable in range(3):
        assert stats.kstest(z[:, variable].numpy(), "norm").pvalue > LEAST_P
    correlation = torch.corrcoef(z.T)
    assert float((correlation - torch.eye(3)).abs().max()) < 5 / math.sqrt(len(z))


def two_moons(rows: int) -> torch.Tensor:
    angle, moon = math.pi * torch.rand(rows), torch.randint(2, (rows,))
    x = torch.stack([angle.cos() + moon - 0.5, (1 - 2 * moon) * (angle.sin() - 0.25)], 1)
    return x + 0.1 * torch.randn(rows, 2)


@pytest.mark.parametrize("arguments", [{}, {"univariate": "spline"}, {"inverse": True}], ids=str)
def test_training_fits_two_moons(arguments):
    data, held_out = two_moons(2000), two_moons(1000)
    flow = MAF(2, transforms=4, hidden_features=(32, 32), **arguments)
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for _ in range(250):
        batch = data[torch.randint(len(data), (256,))]
        loss = -flow.log_prob(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gaussian = torch.distributions.MultivariateNormal(data.mean(0), torch.cov(data.T))
    nats = flow.log_prob(held_out).mean()
    # Most seeds gain over 0.3, the worst seen 0.29; the standard error of the difference is some 0.03.
    assert nats > gaussian.log_prob(held_out).mean() + 0.15
    # What was learned also shows in the samples.
    assert gaussian.log_prob(flow.sample(1000, seed=0)).mean() > gaussian.log_prob(held_out).mean() - 0.5


def test_reparameterised_training_fits_a_posterior():
    """Variational inference of a correlated Gaussian: the gradients of samples and of their density, together."""
    target = torch.distributions.MultivariateNormal(torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.8], [0.8, 1.5]]))
    for inverse in (False, True):
        flow = MAF(2, transforms=2, hidden_features=(16,), inverse=inverse)
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
        for _ in range(300):
            x, log_prob = flow.sample_and_log_prob(128)
            loss = (log_prob - target.log_prob(x)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            x, log_prob = flow.sample_and_log_prob(4000, seed=0)
        # The last steps move both: at other seeds by 0.016 and 0.12. What does not learn is off by more than 1.
        assert float((log_prob - target.log_prob(x)).mean()) < 0.05
        assert float((x.mean(0) - target.mean).abs().max()) < 0.3
