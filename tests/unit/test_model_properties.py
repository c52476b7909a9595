"""Properties of every model, random ones: log_prob is that of the references, samples and conditionals agree with it,
known values come back, and a broken argument gets a clear error."""

import copy
import math

import model_strategies
import pytest
import torch
from conftest import SEED
from hypothesis import strategies as st
from properties import check
from strategies import FIRST_INDICES

from ar_fast import _fallback, _library, models

pytestmark = pytest.mark.heavy
# In 16 bits evaluation rounds hidden layers to storage, which sampling and single steps keep in float32.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.5}


@pytest.fixture
def full(request):
    return request.config.getoption("--full")


def close(got, want, dtype):
    assert got.shape == want.shape
    if want.numel():
        tolerance = TOLERANCES[dtype] * max(1.0, float(want.detach().abs().max()))
        torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=tolerance)


def wide(case):
    """The model and its inputs in float64."""
    context = None if case.context is None else case.context.detach().double()
    x = case.x.double() if case.x.is_floating_point() else case.x
    return copy.deepcopy(case.model).double(), x, context


def check_log_prob(case):
    model, x, context, dtype = case.model, case.x, case.context, case.first.dtype
    if context is not None:
        context.requires_grad_()
    log_prob = model.log_prob(x, context)
    assert log_prob.dtype == case.first.compute_dtype
    assert log_prob.shape == x.shape[: x.dim() - len(case.first.event_shape)]
    plain, x64, context64 = wide(case)
    if context is not None:
        context64.requires_grad_()
    with _library.replaced(_fallback.REFERENCES):
        want = plain.log_prob(x64, context64)
    close(log_prob, want, dtype)
    if isinstance(model, models.Ensemble):
        return
    terms = model.log_prob(x, context, per_variable=True)
    assert terms.shape == x.shape
    close(terms.flatten(len(log_prob.shape)).sum(-1), want, model.dtype)
    own, theirs = (
        [p for p in m.parameters() if p.requires_grad] + ([c] if c is not None else [])
        for m, c in ((model, context), (plain, context64))
    )
    with _library.replaced(_fallback.REFERENCES):
        expected = torch.autograd.grad(want.sum(), theirs, allow_unused=True)
    for got, grad in zip(torch.autograd.grad(log_prob.sum(), own, allow_unused=True), expected, strict=True):
        assert got is not None or grad is None or not grad.any()
        if got is not None and grad is not None:
            close(got, grad, model.dtype)


@torch.no_grad()
def check_conditionals(case):
    """One variable at a time, the parameters are those of ``forward``."""
    model, x, context = case.model, case.x, case.context
    if isinstance(model, models.Ensemble):
        return
    batch = x.shape[: x.dim() - len(model.event_shape)]
    parameters = model(x, context)
    own = None if context is None else context.expand(*batch, -1)
    state, rows = model.begin(batch, own), x.reshape(*batch, model.variables)
    by_variable = [None] * model.variables
    while state.parameters is not None:
        by_variable[state.variable] = state.parameters
        state = model.next(state, rows[..., state.variable])
    close(torch.cat(by_variable, -1), parameters.flatten(len(batch)), model.dtype)


@torch.no_grad()
def check_samples(case, n, seed, first, known_count, temperature):
    """A sample's log_prob is what log_prob says; known values come back; in float64 the references draw the same."""
    model, one, context = case.model, case.first, case.context
    batch = (*n, *(() if context is None else context.shape[:-1]))
    known = torch.zeros(one.variables, dtype=torch.bool)
    order = range(one.variables) if one.order is None else one.order.tolist()
    ensemble = isinstance(model, models.Ensemble)
    # The members of an ensemble have other orders, and what is known is the same for all n.
    count = known_count % 2 * one.variables if ensemble else known_count % (one.variables + 1)
    known[list(order)[:count]] = True
    known = known.reshape(one.event_shape)
    given = model_strategies.events(one, *batch[len(n) * ensemble :])
    given = torch.where(known, given, math.nan).to(one.compute_dtype)
    options = {"seed": seed, "first_index": first, "temperature": temperature, "return_log_prob": True}
    samples, log_prob = model.sample(n, context, given=given, known=known, **options)
    assert samples.shape == (*batch, *one.event_shape) and log_prob.shape == batch
    back = known.expand(samples.shape)
    assert torch.equal(samples[back].to(given.dtype), given.expand(samples.shape)[back])
    # Draws that run away multiply each other's rounding, up to the end of their type.
    if ensemble or (samples.abs() > 1e4).any():
        return
    terms = model.log_prob(samples, context, per_variable=True)
    close(log_prob, torch.where(known, 0.0, terms).flatten(len(batch)).sum(-1), model.dtype)
    if model.dtype == torch.float64:
        plain, _, context64 = wide(case)
        with _library.replaced(_fallback.REFERENCES):
            want, _ = plain.sample(n, context64, given=given, known=known, **options)
        close(samples, want, model.dtype)


def check_broken(broken):
    case, method, arguments, message = broken
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(case.model, method)(**arguments)
    assert message in str(caught.value), str(caught.value)


@pytest.mark.parametrize("kind", model_strategies.MODELS)
def test_log_prob(kind, full):
    check(check_log_prob, SEED, full, model_strategies.cases(kind))


@pytest.mark.parametrize("kind", model_strategies.MODELS)
def test_conditionals(kind, full):
    check(check_conditionals, SEED, full, model_strategies.cases(kind))


@pytest.mark.parametrize("kind", model_strategies.MODELS)
def test_samples(kind, full):
    check(
        check_samples,
        SEED,
        full,
        model_strategies.cases(kind),
        st.sampled_from([(), (0,), (1,), (4,), (2, 0), (2, 3)]),
        st.sampled_from([0, 1, 2**63 - 1]) | st.integers(0, 2**63 - 1),
        st.sampled_from([index for index in FIRST_INDICES if index <= 2**40]),
        st.integers(0, 12),
        st.sampled_from([1.0, 0.5, 2.0]),
    )


@pytest.mark.parametrize("kind", model_strategies.MODELS)
def test_a_broken_argument(kind, full):
    check(check_broken, SEED, full, model_strategies.broken(kind))
