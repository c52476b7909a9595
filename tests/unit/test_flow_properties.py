"""Properties of random flows and texts: densities are those of the references and of the Jacobian, each direction
undoes the other, and draws agree with the density and with the reference's."""

import copy

import pytest
import torch
from conftest import SEED
from hypothesis import strategies as st
from model_strategies import BATCHES
from properties import check
from rnn_model_cases import randomize, reference_of
from strategies import torch_seeds

from ar_fast import _fallback, _library, flows, models

pytestmark = pytest.mark.heavy
ACTIVATIONS = ["relu", "sigmoid", "tanh", "elu", "softplus", "silu", "gelu", "leaky_relu"]


@pytest.fixture
def full(request):
    return request.config.getoption("--full")


def close(got, want, dtype, share=1.0):
    assert got.shape == want.shape
    if want.numel():
        tolerance = {torch.float64: 1e-7, torch.float32: 2e-2}[dtype] * share * max(1.0, float(want.abs().max()))
        torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=tolerance)


@st.composite
def flow_cases(draw, inverse):
    """A flow, events and their contexts or None."""
    torch.manual_seed(draw(torch_seeds))
    features, context_features = draw(st.integers(1, 6)), draw(st.sampled_from([0, 0, 1, 3]))
    transforms, dtype = draw(st.integers(1, 3)), draw(st.sampled_from([torch.float64, torch.float64, torch.float32]))
    # Steep transforms one after the other magnify what is rounded.
    slope = draw(st.sampled_from([0.1, 0.3]))
    univariate = draw(st.sampled_from([flows.Affine(slope), flows.Spline(1, 2.0, slope), flows.Spline(4, 1.0, slope)]))
    orders = draw(st.sampled_from(["alternating", "random", "own"]))
    flow = flows.MAF(
        features,
        context_features,
        transforms,
        [draw(st.sampled_from([1, 3, 8, 17])) for _ in range(draw(st.integers(1, 3)))],
        univariate,
        draw(st.sampled_from(ACTIVATIONS)),
        inverse=inverse,
        orders=[torch.randperm(features) for _ in range(transforms)] if orders == "own" else orders,
        dtype=dtype,
    )
    size = draw(st.sampled_from([0.0, 1.0, 2.0]))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(size)
    batch = draw(st.sampled_from(BATCHES))
    x = draw(st.sampled_from([0.3, 1.5])) * torch.randn(*batch, features, dtype=dtype)
    context = None
    if context_features:
        context = torch.randn(*batch[draw(st.integers(0, len(batch))) :], context_features, dtype=dtype)
    return flow, x, context


def by_the_references(flow, call, *tensors):
    wide = [None if tensor is None else tensor.double() for tensor in tensors]
    with _library.replaced(_fallback.REFERENCES):
        return call(copy.deepcopy(flow).double(), *wide)


def check_density(case):
    flow, x, context = case
    (z, log_det), log_prob = flow.to_noise(x, context), flow.log_prob(x, context)
    want = by_the_references(flow, lambda own, *given: (*own.to_noise(*given), own.log_prob(*given)), x, context)
    for got, own in zip((z, log_det, log_prob), want, strict=True):
        close(got, own, flow.dtype)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z.double()).sum(-1)
    close(log_prob, normal + log_det, flow.dtype)
    if flow.dtype == torch.float64 and x.numel():
        rows = x.reshape(-1, flow.features)

        def total(own):
            return flow.to_noise(own.reshape(x.shape), context)[0].reshape(rows.shape).sum(0)

        # Rows do not depend on each other, so a sum over them has the Jacobian of each.
        jacobian = torch.autograd.functional.jacobian(total, rows).transpose(0, 1)
        close(log_det.flatten(), torch.linalg.slogdet(jacobian).logabsdet, flow.dtype)


@torch.no_grad()
def check_inverse(case):
    flow, x, context = case
    z, log_det = flow.to_noise(x, context)
    again, back = flow.from_noise(z, context)
    close(again, x, flow.dtype)
    close(back, -log_det, flow.dtype)
    noise, forth = flow.to_noise(flow.from_noise(x, context)[0], context)
    close(noise, x, flow.dtype)
    close(forth, -flow.from_noise(x, context)[1], flow.dtype)


def check_draws(case, n, seed):
    flow, _, context = case
    x, log_prob = flow.sample_and_log_prob(n, context, seed=seed)
    own = () if context is None else context.shape[:-1]
    assert x.shape == (*n, *own, flow.features) and log_prob.shape == x.shape[:-1]
    assert x.requires_grad and log_prob.requires_grad
    close(flow.sample(n, context, seed=seed), x.detach(), flow.dtype)
    close(log_prob.detach(), flow.log_prob(x.detach(), context).detach(), flow.dtype)
    if flow.dtype == torch.float64:
        want = by_the_references(flow, lambda own, given: own.sample(n, given, seed=seed), context)
        close(x.detach(), want, flow.dtype)


@st.composite
def text_cases(draw):
    """A CharRNN in float64, and the arguments of a sample of some rows, each with a prompt of its own."""
    torch.manual_seed(draw(torch_seeds))
    symbols = "abcdefg"[: draw(st.integers(1, 7))]
    model = models.CharRNN(
        symbols,
        draw(st.sampled_from([1, 4, 9])),
        draw(st.sampled_from(["gru", "lstm", "rnn"])),
        draw(st.integers(1, 3)),
        embedding_features=draw(st.sampled_from([None, 1, 3])),
        dtype=torch.float64,
    )
    randomize(model, draw(st.sampled_from([0.0, 1.0, 2.0])))
    n, width = draw(st.integers(0, 5)), draw(st.integers(0, 4))
    prompt = torch.randint(len(symbols), (n, width))
    return model, {
        "n": n,
        "length": draw(st.integers(0, 9)),
        "prompt": prompt,
        "prompt_lengths": torch.randint(width + 1, (n,)),
        "stop": draw(st.sampled_from([None, symbols[-1]])),
        "seed": draw(st.sampled_from([0, 2**63 - 1]) | st.integers(0, 2**63 - 1)),
        "first_index": draw(st.sampled_from([0, 1, 2**40])),
        "temperature": draw(st.sampled_from([0.5, 1.0, 2.0])),
        "top_k": draw(st.none() | st.integers(1, len(symbols))),
        "top_p": draw(st.sampled_from([None, 0.3, 1.0])),
    }


@torch.no_grad()
def check_text(case):
    """The rows are the reference's, known prompts included, and their log_prob is that of the whole texts."""
    model, options = case
    tokens, lengths, log_prob = model.sample(**options, return_log_prob=True)
    plain, stop = reference_of(model), options["stop"]
    stop = None if stop is None else model.vocabulary.symbols.index(stop)
    draws = {name: options[name] for name in ("temperature", "top_k", "top_p") if options[name] is not None}
    for row in range(options["n"]):
        own = options["prompt"][row, : options["prompt_lengths"][row]]
        want = plain.sample(own, options["length"], options["first_index"] + row, options["seed"], stop=stop, **draws)
        assert tokens[row, : lengths[row]].tolist() == want.tolist()
        assert bool((tokens[row, lengths[row] :] == (stop or 0)).all())
        whole = torch.cat([own, want])
        terms = model.log_prob(whole, per_token=True)
        torch.testing.assert_close(terms, plain.log_prob(whole))
        torch.testing.assert_close(log_prob[row], terms[len(own) :].sum())


@pytest.mark.parametrize("inverse", [False, True], ids=["MAF", "IAF"])
@pytest.mark.parametrize("prove", [check_density, check_inverse])
def test_a_flow(prove, inverse, full):
    check(prove, SEED, full, flow_cases(inverse))


@pytest.mark.parametrize("inverse", [False, True], ids=["MAF", "IAF"])
def test_draws_of_a_flow(inverse, full):
    n = st.sampled_from([(), (0,), (1,), (4,), (2, 3)])
    check(check_draws, SEED, full, flow_cases(inverse), n, st.integers(0, 2**63 - 1))


def test_a_text(full):
    check(check_text, SEED, full, text_cases())


@pytest.mark.parametrize("hidden_features", [[3, 1], [17, 1], [4, 2], [8, 3, 1]], ids=str)
@pytest.mark.parametrize("inverse", [False, True], ids=["MAF", "IAF"])
def test_gradients_of_an_inverse_whose_layers_narrow(inverse, hidden_features):
    """Some units of a wide layer are seen by no variable, since those above them are of lower degrees."""
    flow = flows.MAF(6, 2, 2, hidden_features, "affine", "tanh", inverse=inverse, dtype=torch.float64)
    values, context = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in (values, context, *flow.parameters())]

    def undone(values, context, *_):
        return (flow.to_noise if inverse else flow.from_noise)(values, context)

    assert torch.autograd.gradcheck(undone, leaves, fast_mode=True)
