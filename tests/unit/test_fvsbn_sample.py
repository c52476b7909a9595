"""Linear models drawn from a weight by input, by masked_mlp_sample on the CPU and by fvsbn_sample on CUDA: equal to the
reference draw by draw, and bit for bit independent of how the work is cut."""

import pytest
import torch
from conftest import available_isas, isa
from fvsbn_cases import by_position, fvsbn_case
from grids import pairs
from torch import Tensor

from ar_fast import _library, functional, reference

FIXED_SEED = 0
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def runs_cuda(case):
    return _library.runs_cuda(case.weight.device)


def sample(case, batch, *, state=None, **options):
    options = {"seed": 11, **options}
    if not runs_cuda(case):
        weights, biases, structure = by_position(case)
        if state is None:
            state = torch.zeros(batch, len(case.weight), dtype=case.bias.dtype)
        return functional.masked_mlp_sample(state, weights, biases, [], [], **structure, **options)
    if state is None:
        state = case.bias.expand(batch, -1)
    return functional.fvsbn_sample(
        state, case.weight, variables=case.variables, order=case.order, offsets=case.offsets, head=case.head,
        levels=case.levels, head_kinds=case.head_kinds, in_offsets=case.in_offsets, **options,
    )  # fmt: skip


def by_reference(case, batch, **options):
    options = {
        "given": None, "known": None, "seed": 11, "first_index": 0, "start": 0, "stop": case.variables,
        "temperature": 1.0, **options,
    }  # fmt: skip
    if options["given"] is not None:
        options["given"] = options["given"].double()
    if not runs_cuda(case):
        (weight,), (bias,), structure = by_position(case)
        state, program = torch.zeros(batch, len(weight), dtype=torch.float64), [0, -1, -1, 0]
        return reference.masked_mlp_sample(
            state, [weight.double()], [bias.double()], [], [], program, activation="relu", **structure, **options
        )
    options |= {
        "variables": case.variables, "head": case.head, "levels": case.levels,
        "head_kinds": case.head_kinds, "in_offsets": case.in_offsets,
    }  # fmt: skip
    state = case.bias.double().expand(batch, -1)
    return reference.fvsbn_sample(state, case.weight.double(), case.order, case.offsets, **options)


def assert_equal_draws(got, want, dtype, discrete=True):
    """Draws may differ only where rounding decides, which these seeds do not hit; the rest agrees within rounding."""
    values, log_prob, state = got
    assert log_prob.dtype == torch.float64
    assert values.dtype == state.dtype == reference.compute_dtype(dtype)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(values.double(), want[0], **({"rtol": 0, "atol": 1e-6} if discrete else tolerance))
    torch.testing.assert_close(log_prob, want[1], **tolerance)
    torch.testing.assert_close(state.double(), want[2], **tolerance)


SIZES = [(0, 3), (1, 1), (5, 7), (3, 33), (70, 19), (2, 111)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_draws_equal_the_reference(device, dtype, size):
    batch, variables = size
    case = fvsbn_case(variables, dtype=dtype, device=device, ordered=variables != 33)
    assert_equal_draws(sample(case, batch), by_reference(case, batch), dtype)


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


def variables_of(head: str, variables: int) -> int:
    """Fewer where each has many categories: the weight has a row and a column for each category of each variable."""
    return min(variables, 20) if head == "many categories" else variables


@pytest.mark.parametrize("head, dtype", pairs(HEADS, [torch.float64, torch.float32, torch.bfloat16]), ids=str)
def test_every_head(device, dtype, head):
    case = fvsbn_case(variables_of(head, 37), dtype=dtype, device=device, **HEADS[head])
    for options in ({}, {"temperature": 0.6, "first_index": 2**40 + 7}):
        assert_equal_draws(
            sample(case, 5, **options), by_reference(case, 5, **options), dtype, not any(real in head for real in REAL)
        )


@pytest.mark.parametrize("head", HEADS)
def test_every_head_knows_and_is_cut_anywhere(device, head):
    case = fvsbn_case(37, device=device, **HEADS[head])
    options = {"given": case.given(6), "known": torch.rand(6, 37, device=device) < 0.4}
    whole = sample(case, 6, **options)
    assert_equal_draws(whole, by_reference(case, 6, **options), torch.float32, not any(real in head for real in REAL))
    drawn = torch.empty_like(whole[0])
    drawn[:, case.order] = whole[0]
    assert torch.equal(drawn[options["known"]], options["given"][options["known"]])
    pieces, start = [], None
    for begin, end in ((0, 5), (5, 5), (5, 6), (6, 37)):
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
    case = fvsbn_case(variables_of(head, 77), dtype=dtype, **HEADS[head])
    with isa(name):
        assert_equal_draws(sample(case, 5), by_reference(case, 5), dtype, not any(real in head for real in REAL))


def test_more_parameters_than_shared_memory_holds(device):
    case = fvsbn_case(8, device=device, head="gaussian_mixture", parameters=700)
    assert_equal_draws(sample(case, 2), by_reference(case, 2), torch.float32, discrete=False)


def test_log_prob_is_at_temperature_one(device):
    case = fvsbn_case(10, device=device)
    assert_equal_draws(sample(case, 6, temperature=2.5), by_reference(case, 6, temperature=2.5), torch.float32)
    known = torch.ones(6, 10, dtype=torch.bool, device=device)
    _, log_prob, _ = sample(case, 6, given=torch.ones(6, 10, device=device), known=known)
    assert (log_prob == 0).all()


def test_batches_can_be_cut_anywhere(device):
    case = fvsbn_case(70, device=device)
    whole = sample(case, 83)
    parts = [sample(case, end - begin, first_index=begin) for begin, end in ((0, 1), (1, 34), (34, 83))]
    for together, *cut in zip(whole, *parts, strict=True):
        assert torch.equal(together, torch.cat(cut))


def test_threads_do_not_matter():
    case = fvsbn_case(130)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        try:
            results.append(sample(case, 75))
        finally:
            torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_strided_weight(device):
    case = fvsbn_case(12, device=device)
    whole = sample(case, 4)
    case.weight = case.weight.repeat_interleave(2, 1)[:, ::2]
    for a, b in zip(sample(case, 4), whole, strict=True):
        assert torch.equal(a, b)


def test_samples_equal_those_of_a_weight_by_unit(device):
    """The sums are the same, so the draws and the state are, and log_prob up to how it is added up."""
    case = fvsbn_case(111, device=device)
    if runs_cuda(case):
        pytest.skip("fvsbn_sample is another op")
    by_unit = case.weight.flip(0, 1).T.contiguous()
    _, biases, structure = by_position(case)
    extents = torch.arange(111, dtype=torch.int32)
    got = sample(case, 21)
    want = functional.masked_mlp_sample(
        torch.zeros(21, 111), [by_unit], biases, [extents], [], **structure | {"by_input": False}, seed=11
    )
    assert torch.equal(got[0], want[0]) and torch.equal(got[2], want[2])
    torch.testing.assert_close(got[1], want[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_has_no_effect_through_a_zero(device, value):
    case = fvsbn_case(9, device=device, ordered=False)
    known = torch.ones(2, 9, dtype=torch.bool, device=device)
    known[:, -1] = False
    given = torch.zeros(2, 9, device=device)
    given[1, 3] = 1
    clean = sample(case, 2, given=given, known=known)
    case.weight[9 - 1 - 3, 0] = value  # from position 3 to the last one
    log_prob = sample(case, 2, given=given, known=known)[1]
    assert log_prob[0] == clean[1][0]
    assert log_prob[1] != clean[1][1]


@pytest.mark.heavy
def test_opcheck(device, ops):
    case = fvsbn_case(5, device=device)
    if not runs_cuda(case):
        weights, biases, _ = by_position(case)
        lists = [weights[0].nan_to_num()], biases, [], [], [0, -1, -1, 0]
        structure = case.order, None, None, None, None, 5, "relu", "bernoulli", 0, None
        torch.library.opcheck(
            ops.masked_mlp_sample.default, (torch.zeros(3, 5), *lists, *structure, 3, 0, 0, 5, 1.0, "auto", True)
        )
        return
    state = case.bias.expand(3, -1).contiguous()
    torch.library.opcheck(
        ops.fvsbn_sample.default,
        (state, case.weight.nan_to_num(), case.order, None, None, None, None, 5, "bernoulli", 0, None, 3, 0, 1, 4, 1.0),
    )


@pytest.mark.parametrize(
    ("message", "options"),
    {
        "state must have 8 parameters": {"state": torch.zeros(2, 7)},
        "state must be float32": {"state": torch.zeros(2, 8, dtype=torch.float64)},
        "order must have 8 entries": {"order": torch.arange(7)},
        "offsets must have 9 entries": {"offsets": torch.arange(8)},
        "given and known come together": {"known": torch.ones(2, 8, dtype=torch.bool)},
        "known must have 8 variables": {"given": torch.zeros(2, 8), "known": torch.ones(2, 7, dtype=torch.bool)},
        "positions must satisfy": {"start": 3, "stop": 9},
        "temperature must be positive, got 0": {"temperature": 0.0},
        "head must be bernoulli, categorical, .*, got 'poisson'": {"head": "poisson"},
        "levels must be 0 except for logistic_mixture, got 4": {"levels": 4},
        "weight must have 3 K rows per variable": {"head": "gaussian_mixture"},
        "weight must have a multiple of D = 3 columns": {"variables": 3, "stop": 3},
        "weight must have one row per variable, 2, got": {"variables": 2, "stop": 2, "head": "gaussian_mixture",
                                                           "weight": torch.zeros(3, 6), "state": torch.zeros(2, 6)},
        "weight must have one row per category, .* 6, got": {"variables": 3, "stop": 3, "head": "categorical",
                                                              "weight": torch.zeros(3, 6), "state": torch.zeros(2, 6)},
        "algorithm must be one of auto, push, got 'gather'": {"algorithm": "gather"},
    }.items(),
)  # fmt: skip
def test_bad_input(device, message, options):
    """The checks come first on the CPU too, where the op then says what draws instead."""
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    arguments = {"state": torch.zeros(2, 8, device=device), "weight": torch.zeros(8, 8, device=device), "seed": 1}
    with pytest.raises(RuntimeError, match=f"fvsbn_sample: {message}"):
        functional.fvsbn_sample(**{**arguments, "variables": 8, **options})


def test_the_cpu_is_told_what_draws_there():
    with pytest.raises(RuntimeError, match=r"fvsbn_sample: tensors must be on CUDA, .* masked_mlp_sample"):
        functional.fvsbn_sample(torch.zeros(1, 3), torch.zeros(3, 3), seed=1)


@pytest.mark.parametrize(
    ("message", "options"),
    {
        "order must be a permutation": {"order": torch.tensor([0, 0, 1])},
        "out_offsets must run from 0 to 6, got 0 to 5": {
            "out_offsets": torch.tensor([0, 2, 4, 5]), "head": "categorical",
        },
        "a variable must have one column .*, or one for each of 3 categories, got 1": {
            "in_offsets": torch.tensor([0, 2, 3, 6]), "out_offsets": torch.tensor([0, 2, 5, 6]), "head": "categorical",
        },
        r"by_input needs a program of one layer, .* got \[0, -1, -1, 1\]": {"program": [functional.MlpLayer((0,))]},
        "extents must be empty for a weight by input, got 1 tensors": {"extents": [torch.arange(3, dtype=torch.int32)]},
        r"weights\[0\] must have shape \(R_in, R_out\), got \[3\]": {"weights": [torch.zeros(3)], "variables": 3},
        "algorithm must be 'push' for a weight by input": {"algorithm": "lanes"},
    }.items(),
)  # fmt: skip
def test_bad_values_on_the_cpu(message, options):
    rows = 6 if "head" in options else 3
    arguments = {
        "state": torch.zeros(1, rows), "weights": [torch.zeros(rows, rows)], "biases": [torch.zeros(rows)],
        "extents": [], "unit_ends": [], "by_input": True, "variables": 3, "seed": 1,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=f"masked_mlp_sample: {message}"):
        functional.masked_mlp_sample(**arguments | options)


@pytest.mark.skipif(not _library._has_ops, reason="nothing was compiled")
def test_the_emulated_op_takes_no_weight_by_input(device, ops):
    if not _library.runs_cuda(device):
        pytest.skip("the CPU does")
    case = fvsbn_case(3, device=device)
    with pytest.raises(RuntimeError, match="masked_mlp_sample: by_input must be False on CUDA, where fvsbn_sample"):
        functional.masked_mlp_sample(
            torch.zeros(1, 3, device=device), [case.weight], [case.bias], [], [], by_input=True, seed=1
        )
