"""What is no category of its variable - negative, too large, a fraction, NaN - reads no row of a table: it stands for
NaN, on every device and in the references. What depends on it is NaN, and nothing else."""

import contextlib

import emulated
import pytest
import torch
from model_cases import SHARED_KINDS, make_model
from nade_cases import nade_case
from rnn_cases import CELLS, by_reference, op_case, sample

from ar_fast import functional, heads, models, reference

NUMBERS = [-1.0, 3.0, 1e30, -1e30, float("inf"), float("nan"), 0.5]
INTEGERS = [-1, 3, 2**40, -(2**63), 2**63 - 1]
D, BAD = 4, 1  # variables, and the one that holds no category in the first rows, one for each bad value
HEADS = {
    "same": heads.Categorical(3),
    "different": heads.Categorical([2, 3, 4, 2]),
    "mixed": heads.PerVariable(
        [heads.Bernoulli(), heads.Categorical(3), heads.GaussianMixture(2), heads.Categorical(2)]
    ),
}
KINDS = ["NADE", "MADE", "MADE-residual", "MADE-masks", "FVSBN", "ARMLP", "DeepNADE", "DeepNADE-layers"]
MODELS = [(kind, head) for kind in KINDS for head in HEADS] + [(kind, "same") for kind in SHARED_KINDS]
# Columns of different kinds are one tensor of reals.
CASES = [
    (*model, bad) for model in MODELS for bad in ("numbers", "integers") if (model[1], bad) != ("mixed", "integers")
]


def make(kind, head, device):
    options = {"head": HEADS[head], "device": device, "dtype": torch.float32, "order": None, "validate_args": False}
    if kind == "DeepNADE-layers":
        return models.DeepNADE(D, [6, 5], activation="tanh", **options)
    return make_model(kind, D, **options)


def events(bad, device):
    """Events of categories, the same with a bad value in each row but the last two, and which rows have one."""
    values = NUMBERS if bad == "numbers" else INTEGERS
    rows = torch.tensor([[1, 2, 1, 0], [0, 1, 0, 1], [1, 0, 1, 1]], device=device)
    good = rows[torch.arange(len(values) + 2) % 3]
    good = good.float() if bad == "numbers" else good
    x, has = good.clone(), torch.arange(len(good), device=device) < len(values)
    x[has, BAD] = torch.tensor(values, dtype=x.dtype, device=device)
    return good, x, has


def after(model):
    """The parameters (flat) of the variables after BAD."""
    counts = torch.tensor([model.counts] * D if isinstance(model.counts, int) else model.counts)
    order = torch.arange(D) if model.order is None else model.order.cpu()
    position = order.argsort()
    return (position > position[BAD]).repeat_interleave(counts)


@pytest.mark.heavy
@pytest.mark.parametrize(("kind", "head", "bad"), CASES)
def test_a_model_gives_nan(kind, head, bad, device):
    model = make(kind, head, device)
    good, x, has = events(bad, device)
    log_prob = model.log_prob(x)
    assert torch.equal(log_prob.isnan(), has)
    torch.testing.assert_close(log_prob[~has], model.log_prob(good)[~has])
    terms = model.log_prob(x, per_variable=True)
    assert terms[has, BAD].isnan().all() and not terms[~has].isnan().any()
    parameters = model(x).flatten(1)
    assert parameters[has][:, after(model)].isnan().all() and not parameters[~has].isnan().any()
    for row in range(len(x)):
        gradients = torch.autograd.grad(model.log_prob(x[row]), list(model.parameters()), allow_unused=True)
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            assert gradient is None or gradient.isnan().any() == has[row], (row, name)


@pytest.mark.heavy
@pytest.mark.parametrize(("kind", "head", "bad"), CASES)
def test_a_value_that_is_given_gives_nan(kind, head, bad, device):
    model = make(kind, head, device)
    good, x, has = events(bad, device)
    known = torch.tensor([True, True, False, False], device=device)
    _, log_prob = model.sample((len(x),), given=x, known=known, seed=1, return_log_prob=True)
    values, expected = model.sample((len(x),), given=good, known=known, seed=1, return_log_prob=True)
    assert torch.equal(log_prob.isnan(), has)
    torch.testing.assert_close(log_prob[~has], expected[~has], rtol=0, atol=0)
    assert not values.isnan().any()


@pytest.mark.parametrize("bad", [-1, 2, 2**40])
@pytest.mark.parametrize(("kind", "head"), [(kind, head) for kind, head in MODELS if head != "mixed"])
def test_one_variable_at_a_time_gives_nan(kind, head, bad):
    """In plain torch, so on the CPU alone. Variable 0 has 2 or 3 categories."""
    model = make(kind, head, "cpu")
    bad = 3 if head == "same" and bad == 2 else bad
    state = model.begin(2)
    state = model.next(state, torch.tensor([bad, 0]))
    assert state.parameters[0].isnan().all() and not state.parameters[1].isnan().any()


@pytest.mark.parametrize(
    ("x", "ragged", "bad"),
    [
        *[("mixed", True, bad) for bad in [*NUMBERS[:1], "count", *NUMBERS[2:]]],
        *[("category", ragged, bad) for ragged in (False, True) for bad in [-1, "count", 2**40, -(2**63)]],
    ],
)
def test_nade_gives_what_its_reference_gives(x, ragged, bad, device):
    torch.manual_seed(3)
    case = nade_case(4, 6, 9, x=x, parameters=3, ragged=ragged, device=device)
    counts = torch.full((6,), 3) if case.in_offsets is None else case.in_offsets.diff().cpu()
    # The first of the order that has categories: others follow it.
    variable = next(i for i in case.order.tolist() if counts[i] > 1)
    if x == "mixed":  # an input of zero adds nothing to a gradient, not to one that is NaN either
        case.x[1, counts == 1] = 0.5
    case.x[1, variable] = counts[variable] if bad == "count" else bad

    def run(op):
        leaves = {name: t.detach().requires_grad_() for name, t in case.real_tensors().items() if name != "x"}
        for name, leaf in leaves.items():
            setattr(case, name, leaf)
        out = op(
            case.x, case.in_weight, case.in_bias, case.out_weight, case.out_bias, order=case.order,
            in_offsets=case.in_offsets, out_offsets=case.out_offsets, activation=case.activation,
        )  # fmt: skip
        return out, torch.autograd.grad(out.square().sum(), list(leaves.values()))

    out, gradients = run(functional.nade)
    expected, expected_gradients = run(reference.nade)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert out[1].isnan().any() and not out[[0, 2, 3]].isnan().any()
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(gradient.isnan(), wanted.isnan())
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("bad", ["numbers", "integers"])
@pytest.mark.parametrize("grad", [1.0, 0.0])
def test_a_head_gives_nan(bad, grad, device):
    _, x, has = events(bad, device)
    parameters = torch.randn(len(x), 3 * D, device=device, requires_grad=True)
    log_prob = functional.head_log_prob(parameters, x, head="categorical")
    plain = reference.head_log_prob(parameters, x, None, "categorical", 0)
    torch.testing.assert_close(log_prob, plain, equal_nan=True)
    assert torch.equal(log_prob[:, BAD].isnan(), has) and log_prob.isnan().sum() == has.sum()
    (gradient,) = torch.autograd.grad(grad * log_prob.sum(), parameters)
    (wanted,) = torch.autograd.grad(grad * plain.sum(), parameters)
    torch.testing.assert_close(gradient, wanted, equal_nan=True)
    of_bad = gradient.unflatten(1, (D, 3))[:, BAD]
    assert of_bad[has].isnan().all() and gradient.isnan().sum() == 3 * has.sum()


@pytest.mark.parametrize("bad", [3.0, -1.0, 1e30, float("nan"), 0.5])
def test_a_category_in_the_state_gives_nan(bad, device):
    state = torch.tensor([[0.0, bad], [0.0, 2.0]], device=device)
    weights = (torch.ones(6, 4), torch.zeros(4), torch.ones(3, 4), torch.zeros(3))
    options = {"head": "categorical", "seed": 0}
    _, log_prob, _ = functional.offset_nade_sample(
        state, *(w.to(device) for w in weights), grid=(1, 6, 1), window=(0, 2), start=3, stop=5, **options
    )
    assert log_prob.isnan().tolist() == [True, False]
    state = torch.tensor([[bad, 0.0, 0.0], [2.0, 0.0, 0.0]], device=device)
    weights = (torch.ones(18, 4), torch.tensor([0, 18]), torch.zeros(3, 4), torch.ones(9, 4), torch.zeros(9))
    _, log_prob, _ = functional.armlp_sample(state, *(w.to(device) for w in weights), start=1, stop=3, **options)
    assert log_prob.isnan().tolist() == [True, False]


@pytest.mark.parametrize("cell", CELLS)
def test_a_last_value_gives_a_state_that_is_no_number(cell, device, emulation):
    """Of a row that runs; that of a finished one is not read."""
    values = [*NUMBERS[:1], 5.0, *NUMBERS[2:], 4.0, 9.0]
    batch = len(values)
    case = op_case(batch, 3, cell=cell, layers=2, device=device)
    bad = torch.arange(batch) < batch - 2
    finished = (torch.arange(batch) == batch - 1).to(device)
    options = {"last": torch.tensor(values, device=device), "finished": finished, "start": 1}
    wanted = by_reference(case, **options)
    for algorithm in ("auto",) if device.type == "cpu" and not emulation else ("auto", "grid"):
        with emulated.gpu(multiprocessors=3) if emulation else contextlib.nullcontext():
            drawn = sample(case, **options, algorithm=algorithm)
        for name in ("log_prob", "state", "last"):
            got, want = getattr(drawn, name), getattr(wanted, name)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True, check_dtype=False)
        assert torch.equal(drawn.log_prob.isnan().cpu(), bad)
        assert torch.equal(drawn.state.isnan().all(2).all(0).cpu(), bad)
        assert not drawn.state[:, ~bad].isnan().any() and not drawn.values.isnan().any()


@pytest.mark.parametrize("features", [None, 4])
@pytest.mark.parametrize("bad", [-1, 3, 2**40, -(2**63)])
def test_a_token_that_is_no_symbol_gives_nan(features, bad, device):
    model = models.CharRNN("abc", 6, embedding_features=features, validate_args=False, device=device)
    good = torch.tensor([[1, 2, 0], [0, 1, 2]], device=device)
    tokens = good.clone()
    tokens[0, 1] = bad
    terms = model.log_prob(tokens, per_token=True)
    assert terms.isnan().tolist() == [[False, True, True], [False, False, False]]
    torch.testing.assert_close(terms[1], model.log_prob(good, per_token=True)[1])
    options = {"seed": 0, "return_log_prob": True}
    drawn, _, log_prob = model.sample(2, 3, prompt=tokens[:, :2], **options)
    wanted, _, _ = model.sample(2, 3, prompt=good[:, :2], **options)
    assert log_prob.isnan().tolist() == [True, False]
    assert torch.equal(drawn[1], wanted[1])
