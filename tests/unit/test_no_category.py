"""What is no category of its variable - negative, too large, a fraction, NaN - reads no row of a table: it stands for
NaN, on every device and in the twins. What depends on it is NaN, and nothing else."""

import pytest
import torch
from model_cases import make_model
from nade_cases import nade_case

from ar_fast import functional, heads, models, reference

NUMBERS = [-1.0, 3.0, 1e30, -1e30, float("inf"), float("nan"), 0.5]
INTEGERS = [-1, 3, 2**40, -(2**63), 2**63 - 1]
D, BAD = 4, 1  # variables, and the one that holds no category, in row 0
HEADS = {
    "same": heads.Categorical(3),
    "different": heads.Categorical([2, 3, 4, 2]),
    "mixed": heads.PerVariable(
        [heads.Bernoulli(), heads.Categorical(3), heads.GaussianMixture(2), heads.Categorical(2)]
    ),
}
KINDS = ["NADE", "MADE", "MADE-residual", "MADE-masks", "FVSBN", "ARMLP", "DeepNADE", "DeepNADE-layers"]
MODELS = [(kind, head) for kind in KINDS for head in HEADS] + [("OffsetNADE", "same")]


def make(kind, head, device):
    options = {"head": HEADS[head], "device": device, "dtype": torch.float32, "order": None, "validate_args": False}
    if kind == "DeepNADE-layers":
        return models.DeepNADE(D, [6, 5], activation="tanh", **options)
    return make_model(kind, D, **options)


def events(model, bad, device):
    x = torch.tensor([[1, 2, 1, 0], [0, 1, 0, 1], [1, 0, 1, 1]], device=device)
    x = x.float() if isinstance(bad, float) else x
    good, x = x, x.clone()
    x[0, BAD] = bad
    return good, x


def after(model):
    """The parameters (flat) of the variables after BAD."""
    counts = torch.tensor([model.counts] * D if isinstance(model.counts, int) else model.counts)
    order = torch.arange(D) if model.order is None else model.order.cpu()
    position = order.argsort()
    return (position > position[BAD]).repeat_interleave(counts)


@pytest.mark.parametrize("bad", [*NUMBERS, *INTEGERS])
@pytest.mark.parametrize(("kind", "head"), MODELS)
def test_a_model_gives_nan(kind, head, bad, device):
    if head == "mixed" and isinstance(bad, int):
        pytest.skip("columns of different kinds are one tensor of reals")
    model = make(kind, head, device)
    good, x = events(model, bad, device)
    log_prob = model.log_prob(x)
    assert log_prob.isnan().tolist() == [True, False, False]
    torch.testing.assert_close(log_prob[1:], model.log_prob(good)[1:])
    terms = model.log_prob(x, per_variable=True)
    assert terms[0, BAD].isnan() and not terms[1:].isnan().any()
    parameters = model(x).flatten(1)
    assert parameters[0, after(model)].isnan().all() and not parameters[1:].isnan().any()
    gradients = torch.autograd.grad(log_prob.sum(), list(model.parameters()), allow_unused=True)
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        if gradient is not None:
            assert gradient.isnan().any(), name


@pytest.mark.parametrize("bad", [*NUMBERS, *INTEGERS])
@pytest.mark.parametrize(("kind", "head"), MODELS)
def test_a_value_that_is_given_gives_nan(kind, head, bad, device):
    if head == "mixed" and isinstance(bad, int):
        pytest.skip("columns of different kinds are one tensor of reals")
    model = make(kind, head, device)
    good, x = events(model, bad, device)
    known = torch.tensor([True, True, False, False], device=device)
    _, log_prob = model.sample((3,), given=x, known=known, seed=1, return_log_prob=True)
    values, expected = model.sample((3,), given=good, known=known, seed=1, return_log_prob=True)
    assert log_prob.isnan().tolist() == [True, False, False]
    torch.testing.assert_close(log_prob[1:], expected[1:], rtol=0, atol=0)
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
def test_nade_gives_what_its_twin_gives(x, ragged, bad, device):
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


@pytest.mark.parametrize("bad", [*NUMBERS, *INTEGERS])
@pytest.mark.parametrize("grad", [1.0, 0.0])
def test_a_head_gives_nan(bad, grad, device):
    parameters = torch.randn(3, 6, device=device, requires_grad=True)
    x = torch.tensor([[0, 1], [2, 0], [1, 2]], device=device)
    x = x.float() if isinstance(bad, float) else x
    x[1, 0] = bad
    log_prob = functional.head_log_prob(parameters, x, head="categorical")
    twin = reference.head_log_prob(parameters, x, None, "categorical", 0)
    torch.testing.assert_close(log_prob, twin, equal_nan=True)
    assert log_prob.isnan().nonzero().tolist() == [[1, 0]]
    (gradient,) = torch.autograd.grad(grad * log_prob.sum(), parameters)
    (wanted,) = torch.autograd.grad(grad * twin.sum(), parameters)
    torch.testing.assert_close(gradient, wanted, equal_nan=True)
    assert gradient.isnan().nonzero().tolist() == [[1, 0], [1, 1], [1, 2]]


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
