"""Mean, mode and sample of a conditional, from its parameters, against its log_prob."""

import math

import pytest
import torch
from conditional_cases import DISCRETE, parameters_of, probabilities, values_of

from ar_fast import heads, models

FIXED_SEED = 0


@pytest.mark.parametrize("name", ["Bernoulli", "LogisticMixture"])
def test_mean_is_the_expected_value(name):
    head = DISCRETE[name]
    parameters = parameters_of(head)
    wanted = probabilities(head, parameters) @ values_of(head).double()
    torch.testing.assert_close(head.mean(parameters), wanted)


@pytest.mark.parametrize("name", DISCRETE)
def test_mode_is_the_likeliest_value(name):
    head = DISCRETE[name]
    parameters = parameters_of(head)
    mode = head.mode(parameters)
    assert torch.equal(mode.long(), probabilities(head, parameters).argmax(1, keepdim=True))
    assert mode.dtype == (torch.float64 if name == "Bernoulli" else torch.int64)


def test_mean_and_mode_of_a_gaussian_mixture():
    for components in (1, 2, 5):
        head = heads.GaussianMixture(components)
        parameters = parameters_of(head, 30)
        x = torch.linspace(-15, 15, 60001, dtype=torch.float64)
        density = torch.stack([head.log_prob(row.expand(len(x), -1, -1), x[:, None])[:, 0] for row in parameters]).exp()
        inside = torch.trapezoid(density, x) > 1 - 1e-6
        assert inside.sum() > 5
        torch.testing.assert_close(
            head.mean(parameters)[inside, 0], torch.trapezoid(density * x, x)[inside], rtol=1e-4, atol=1e-4
        )
        # Where two modes are as high, either may win: their densities are compared.
        at_mode = head.log_prob(parameters, head.mode(parameters))[:, 0]
        assert (at_mode > density.amax(1).log() - 1e-6).all()


def test_a_generator_repeats_the_draws_and_leaves_the_default_one_alone():
    for head in (*DISCRETE.values(), heads.GaussianMixture(2), heads.Categorical([2, 3])):
        own = head.counts(2)
        parameters = torch.randn(6, sum(own)) if isinstance(own, list) else torch.randn(6, 2, own)
        before = torch.get_rng_state()
        first, second = (head.sample(parameters, generator=torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(first, second)
        assert first.shape == (6, 2)
        assert torch.equal(torch.get_rng_state(), before)


def test_variables_of_different_sizes_one_by_one():
    head = heads.Categorical([2, 4, 3])
    parameters = torch.randn(5, 9)
    mode = head.mode(parameters)
    for variable, part in enumerate(parameters.split([2, 4, 3], -1)):
        assert torch.equal(head.of(variable).mode(part), mode[:, variable])
    samples = head.sample(parameters.expand(1000, 5, 9))
    assert samples.amax((0, 1)).tolist() == [1, 3, 2]


def test_those_of_a_model_one_variable_at_a_time():
    """The greedy event: every variable takes the mode of its conditional."""
    for head in (heads.Bernoulli(), heads.Categorical([3, 2, 4]), heads.GaussianMixture(2)):
        model = models.NADE(3, 5, head=head)
        state, event = model.begin(4), torch.zeros(4, 3, dtype=torch.int64 if head.sizes(1)[0] == 3 else torch.float32)
        with torch.no_grad():
            while state.variable is not None:
                value = head.of(state.variable).mode(state.parameters)
                event[:, state.variable] = value
                state = model.next(state, value)
            torch.testing.assert_close(head.mode(model(event)).to(event.dtype), event)


def test_no_rows():
    for head in (*DISCRETE.values(), heads.GaussianMixture(2)):
        parameters = torch.randn(0, 3, head.counts(3))
        assert head.mode(parameters).shape == head.sample(parameters).shape == (0, 3)


def test_errors():
    with pytest.raises(ValueError, match=r"Bernoulli: parameters must have 1 elements .* got shape \(4, 2\)"):
        heads.Bernoulli().mean(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"Categorical: parameters must have 5 elements .* got shape \(4, 3\)"):
        heads.Categorical([2, 3]).mode(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="Categorical: categories have no mean"):
        heads.Categorical(3).mean(torch.zeros(4, 3))
    for temperature in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="GaussianMixture: temperature must be > 0, got"):
            heads.GaussianMixture(1).sample(torch.zeros(3), temperature=temperature)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8]
)
def test_supports_says_whether_anything_violates_the_support(dtype):
    head = heads.Bernoulli()
    x = torch.randint(0, 2, (5, 7)).to(dtype)
    assert head.supports(x) and head.supports(x[:0]) and not head.violation(x).any()
    wrong = [2, 255 if dtype == torch.uint8 else -1]
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        wrong += [math.nan, math.inf, -math.inf, 0.5, 1 + info.eps, 1 - info.eps / 2, info.tiny, info.max]
    for value in wrong:
        other = x.clone()
        other[3, 2] = value
        assert not head.supports(other) and head.violation(other).sum() == 1, value
