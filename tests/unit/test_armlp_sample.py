"""The op armlp_sample: equal to its reference draw by draw, and bit for bit independent of how the work is cut."""

import pytest
import torch
from armlp_cases import armlp_case
from conftest import available_isas, isa
from grids import pairs
from torch import Tensor

from ar_fast import functional, reference

FIXED_SEED = 0
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def sample(case, batch, *, state=None, rows=slice(None), **options):
    """A call of the op for ``batch`` rows, of which an in_bias by row gives ``rows``."""
    weights = dict(case.weights)
    if weights["in_bias"].dim() == 3:
        weights["in_bias"] = weights["in_bias"][rows]
    if state is None:
        # What comes after start is not looked at.
        state = torch.full((batch, case.variables), 77.0, dtype=case.compute, device=weights["in_weight"].device)
    return functional.armlp_sample(
        state, **weights, order=case.order, offsets=case.offsets, activation=case.activation, head=case.head,
        levels=case.levels, head_kinds=case.head_kinds, in_offsets=case.in_offsets, **{"seed": 11, **options},
    )  # fmt: skip


def by_reference(case, batch, **options):
    options = {
        "given": None, "known": None, "activation": case.activation, "head": case.head, "levels": case.levels,
        "head_kinds": case.head_kinds, "in_offsets": case.in_offsets, "seed": 11, "first_index": 0,
        "start": 0, "stop": case.variables, "temperature": 1.0, **options,
    }  # fmt: skip
    if options["given"] is not None:
        options["given"] = options["given"].double()
    weights = {name: t.double() if t.is_floating_point() else t for name, t in case.weights.items()}
    state = torch.zeros(batch, case.variables, dtype=torch.float64, device=weights["in_weight"].device)
    return reference.armlp_sample(state, **weights, order=case.order, offsets=case.offsets, **options)


def assert_equal_draws(got, want, dtype, discrete=True):
    """Draws may differ only where rounding decides, which these seeds do not hit; the rest agrees within rounding."""
    values, log_prob, state = got
    assert log_prob.dtype == torch.float64
    assert values.dtype == state.dtype == reference.compute_dtype(dtype)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    exactly = {"rtol": 0, "atol": 1e-6} if discrete else tolerance
    torch.testing.assert_close(values.double(), want[0], **exactly)
    torch.testing.assert_close(log_prob, want[1], **tolerance)
    torch.testing.assert_close(state.double(), want[2], **exactly)


SIZES = [(0, 3, 5), (1, 1, 1), (5, 7, 19), (3, 8, 64), (3, 33, 7), (70, 19, 16), (2, 11, 300)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_draws_equal_the_reference(device, dtype, size):
    batch, variables, hidden = size
    case = armlp_case(variables, hidden, dtype=dtype, device=device, ordered=variables != 33)
    assert_equal_draws(sample(case, batch), by_reference(case, batch), dtype)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_every_activation(device, activation):
    case = armlp_case(9, 37, device=device, activation=activation)
    assert_equal_draws(sample(case, 4), by_reference(case, 4), torch.float32)


# The heads whose draws are not on a grid.
REAL = ("gaussian_mixture", "per_variable")
HEADS = {
    "bernoulli": {},
    "categorical": {"head": "categorical", "parameters": 3},
    "one category": {"head": "categorical", "parameters": 1},
    "many categories": {"head": "categorical", "parameters": 111},
    "ragged categories": {"head": "categorical", "parameters": 4, "ragged": True},
    "gaussian_mixture": {"head": "gaussian_mixture", "parameters": 5},
    "ragged gaussian_mixture": {"head": "gaussian_mixture", "parameters": 3, "ragged": True},
    "logistic_mixture": {"head": "logistic_mixture", "parameters": 19},
    "per_variable": {"head": "per_variable", "parameters": 4},
    "per_variable, many": {"head": "per_variable", "parameters": 40},
}


@pytest.mark.parametrize("head, dtype", pairs(HEADS, [torch.float64, torch.float32, torch.bfloat16]), ids=str)
def test_every_head(device, dtype, head):
    case = armlp_case(19, 21, dtype=dtype, device=device, **HEADS[head])
    for options in ({}, {"temperature": 0.6, "first_index": 2**40 + 7}):
        assert_equal_draws(
            sample(case, 5, **options), by_reference(case, 5, **options), dtype, not any(real in head for real in REAL)
        )


@pytest.mark.parametrize("head", HEADS)
def test_every_head_knows_and_is_cut_anywhere(device, head):
    case = armlp_case(19, 21, device=device, **HEADS[head])
    options = {"given": case.given(6), "known": torch.rand(6, 19, device=device) < 0.4}
    whole = sample(case, 6, **options)
    assert_equal_draws(whole, by_reference(case, 6, **options), torch.float32, not any(real in head for real in REAL))
    drawn = torch.empty_like(whole[0])
    drawn[:, case.order] = whole[0]
    assert torch.equal(drawn[options["known"]], options["given"][options["known"]])
    pieces, start = [], None
    for begin, end in ((0, 5), (5, 5), (5, 6), (6, 19)):
        before = None if start is None else start.clone()
        pieces.append(sample(case, 6, **options, state=start, start=begin, stop=end))
        assert before is None or torch.equal(before, start), "the state that came in was modified"
        start = pieces[-1][2]
    assert torch.equal(torch.cat([p[0] for p in pieces], 1), whole[0]) and torch.equal(start, whole[2])
    torch.testing.assert_close(sum(p[1] for p in pieces), whole[1], rtol=1e-12, atol=1e-12)
    rows = [sample(case, 1, first_index=i, **{k: v[i : i + 1] for k, v in options.items()}) for i in range(6)]
    for index, part in enumerate(whole):
        assert torch.equal(torch.cat([row[index] for row in rows]), part)


@pytest.mark.parametrize("head, dtype, name", pairs(HEADS, DTYPES, available_isas()), ids=str)
def test_every_instruction_set(name, dtype, head):
    case = armlp_case(37, 85, dtype=dtype, **HEADS[head])
    with isa(name):
        assert_equal_draws(sample(case, 5), by_reference(case, 5), dtype, not any(real in head for real in REAL))


def test_more_than_shared_memory_holds(device):
    case = armlp_case(4, 3, device=device, head="gaussian_mixture", parameters=5200)
    assert_equal_draws(sample(case, 2), by_reference(case, 2), torch.float32, discrete=False)


def test_a_context_makes_biases_by_row(device):
    case = armlp_case(9, 21, device=device, context_rows=5)
    assert_equal_draws(sample(case, 5), by_reference(case, 5), torch.float32)
    halves = [sample(case, 3, rows=slice(0, 3)), sample(case, 2, rows=slice(3, 5), first_index=3)]
    for whole, first, second in zip(sample(case, 5), *halves, strict=True):
        assert torch.equal(whole, torch.cat([first, second]))


def test_log_prob_is_at_temperature_one(device):
    case = armlp_case(10, 8, device=device)
    assert_equal_draws(sample(case, 6, temperature=2.5), by_reference(case, 6, temperature=2.5), torch.float32)
    known = torch.ones(6, 10, dtype=torch.bool, device=device)
    _, log_prob, _ = sample(case, 6, given=torch.ones(6, 10, device=device), known=known)
    assert (log_prob == 0).all()


def test_batches_can_be_cut_anywhere(device):
    case = armlp_case(23, 17, device=device)
    whole = sample(case, 83)
    parts = [sample(case, end - begin, first_index=begin) for begin, end in ((0, 1), (1, 34), (34, 83))]
    for together, *cut in zip(whole, *parts, strict=True):
        assert torch.equal(together, torch.cat(cut))


def test_threads_do_not_matter():
    case = armlp_case(70, 33)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        try:
            results.append(sample(case, 75))
        finally:
            torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.heavy
def test_opcheck(device, ops):
    case = armlp_case(9, 4, device=device)
    weights = [t.nan_to_num() if t.is_floating_point() else t for t in case.weights.values()]
    state = torch.zeros(3, 9, device=device)
    torch.library.opcheck(
        ops.armlp_sample.default,
        (state, *weights, case.order, None, None, None, None, "tanh", "bernoulli", 0, None, 3, 0, 1, 4, 1.0),
    )


@pytest.mark.parametrize(
    ("message", "options"),
    {
        "state must be float32": {"state": torch.zeros(2, 9, dtype=torch.float64)},
        "block_starts must have 3 entries": {"block_starts": torch.tensor([0, 56])},
        "in_bias must have 9 networks": {"in_bias": torch.zeros(8, 4)},
        "in_bias must have 2 rows": {"in_bias": torch.zeros(3, 9, 4)},
        "out_weight must have 4 hidden units": {"out_weight": torch.zeros(9, 5)},
        "order must have 9 entries": {"order": torch.arange(8)},
        "offsets must have 10 entries": {"offsets": torch.arange(9)},
        "given and known come together": {"known": torch.ones(2, 9, dtype=torch.bool)},
        "known must have 9 variables": {"given": torch.zeros(2, 9), "known": torch.ones(2, 8, dtype=torch.bool)},
        "positions must satisfy": {"start": 3, "stop": 10},
        "temperature must be positive, got 0": {"temperature": 0.0},
        "activation must be sigmoid, tanh or relu, got 'gelu'": {"activation": "gelu"},
        "head must be bernoulli, categorical, .*, got 'poisson'": {"head": "poisson"},
        "levels must be 0 except for logistic_mixture, got 4": {"levels": 4},
        "out_weight must have 3 K rows per variable": {"head": "gaussian_mixture"},
        "algorithm must be one of auto, gather, got 'push'": {"algorithm": "push"},
    }.items(),
)
def test_bad_input(device, message, options):
    case = armlp_case(9, 4, ordered=False)
    arguments = {"state": torch.zeros(2, 9), **case.weights, "seed": 1, **options}
    arguments = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match=f"armlp_sample: {message}"):
        functional.armlp_sample(**arguments)


@pytest.mark.parametrize(
    ("message", "options"),
    {
        "order must be a permutation": {"order": torch.tensor([0, 0, 1])},
        "block_starts must be 0 at block 0, got 1": {"block_starts": torch.tensor([1, 6])},
        "in_weight must have the rows that block_starts ends with for 3 networks, 6": {"in_weight": torch.zeros(5, 4)},
    }.items(),
)  # fmt: skip
def test_bad_values_on_the_cpu(message, options):
    case = armlp_case(3, 4, ordered=False)
    with pytest.raises(RuntimeError, match=f"armlp_sample: {message}"):
        functional.armlp_sample(**{"state": torch.zeros(1, 3), **case.weights, "seed": 1, **options})
