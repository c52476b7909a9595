"""The op deep_nade_sample: equal to its reference draw by draw, and bit for bit independent of how the work is cut."""

from dataclasses import replace

import pytest
import torch
from conftest import available_isas, isa
from deep_nade_op_cases import deep_case
from grids import pairs

from ar_fast import functional, reference

FIXED_SEED = 0
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def sample(case, batch, **options):
    state = options.pop("state", None)
    if state is None:
        state = case.bias.to(case.compute).expand(batch, -1)
    return functional.deep_nade_sample(state, **case.tensors, **case.structure, **{"seed": 11, **options})


def by_reference(case, batch, **options):
    case = case.upcast()
    if options.get("given") is not None:
        options["given"] = options["given"].double()
    arguments = {
        "given": None, "known": None, "variables": case.variables, "seed": 11, "first_index": 0, "start": 0,
        "stop": case.variables, "temperature": 1.0, **options,
    }  # fmt: skip
    return reference.deep_nade_sample(case.bias.expand(batch, -1), **case.tensors, **case.structure, **arguments)


def assert_equal_draws(got, want, dtype, discrete=True):
    """Draws may differ only where rounding decides, which these seeds do not hit; the rest agrees within rounding."""
    values, log_prob, state = got
    assert log_prob.dtype == torch.float64
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-4}
    torch.testing.assert_close(values.double(), want[0], **({"rtol": 0, "atol": 1e-6} if discrete else tolerance))
    torch.testing.assert_close(log_prob, want[1], **tolerance)
    torch.testing.assert_close(state.double(), want[2], **tolerance)


SIZES = [
    (0, 3, (5, 4)),
    (1, 1, (1, 1)),
    (5, 7, (19, 7)),
    (3, 13, (111, 64, 5)),
    (2, 5, (989, 3)),
    (9, 4, (24,)),
    (6, 5, (8, 17, 40, 16)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_draws_equal_the_reference(device, dtype, size):
    batch, variables, units = size
    case = deep_case(variables, units, dtype=dtype, device=device)
    assert_equal_draws(sample(case, batch), by_reference(case, batch), dtype)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_every_activation(device, activation):
    case = deep_case(activation=activation, device=device, ordered=False)
    assert_equal_draws(sample(case, 4), by_reference(case, 4), torch.float32)


HEADS = {
    "categorical": {"head": "categorical", "parameters": 3},
    "one category": {"head": "categorical", "parameters": 1},
    "many categories": {"head": "categorical", "parameters": 111},
    "ragged categories": {"head": "categorical", "ragged": True},
    "gaussian_mixture": {"head": "gaussian_mixture", "parameters": 6},
    "ragged gaussian_mixture": {"head": "gaussian_mixture", "ragged": True},
    "logistic_mixture": {"head": "logistic_mixture", "parameters": 9},
    "per_variable": {"head": "per_variable", "parameters": 4},
}
REAL = ("gaussian_mixture", "per_variable")


@pytest.mark.parametrize("head, dtype", pairs(HEADS, DTYPES), ids=str)
def test_every_head(device, dtype, head):
    case = deep_case(dtype=dtype, device=device, **HEADS[head])
    discrete = case.structure["head"] not in REAL
    for options in ({}, {"temperature": 0.6, "first_index": 2**40 + 7}):
        assert_equal_draws(sample(case, 5, **options), by_reference(case, 5, **options), dtype, discrete)


@pytest.mark.parametrize("head", ["bernoulli", *HEADS])
def test_every_head_knows_and_is_cut_anywhere(device, head):
    """In rows and in positions, to the bit; what is known draws nothing and adds nothing."""
    case = deep_case(device=device, **HEADS.get(head, {}))
    known = torch.rand(6, 9, device=device) < 0.4
    known[:, case.structure["order"][3]] = True  # a position at which no row draws
    options = {"given": case.given(6), "known": known}
    whole = sample(case, 6, **options)
    want = by_reference(case, 6, **options)
    assert_equal_draws(whole, want, torch.float32, case.structure["head"] not in REAL)
    by_variable = torch.empty_like(whole[0]).index_copy(1, case.structure["order"], whole[0])
    assert torch.equal(by_variable[known], options["given"][known])
    pieces, state = [], None
    for begin, end in ((0, 3), (3, 3), (3, 4), (4, 9)):
        pieces.append(sample(case, 6, **options, start=begin, stop=end, state=state))
        state = pieces[-1][2]
    assert torch.equal(torch.cat([piece[0] for piece in pieces], 1), whole[0]) and torch.equal(state, whole[2])
    torch.testing.assert_close(sum(piece[1] for piece in pieces), whole[1], rtol=1e-13, atol=1e-13)
    rows = [sample(case, 1, first_index=i, **{k: v[i : i + 1] for k, v in options.items()}) for i in range(6)]
    for index, part in enumerate(whole):
        assert torch.equal(torch.cat([row[index] for row in rows]), part)
    every = sample(case, 6, given=options["given"], known=torch.ones_like(known))
    assert torch.equal(every[2], case.bias.to(case.compute).expand(6, -1)) and not every[1].any()


@pytest.mark.parametrize("head, dtype, name", pairs(["bernoulli", *HEADS], DTYPES, available_isas()), ids=str)
def test_every_instruction_set(name, dtype, head):
    case = deep_case(9, (77, 33), dtype=dtype, **HEADS.get(head, {}))
    with isa(name):
        assert_equal_draws(sample(case, 5), by_reference(case, 5), dtype, discrete=case.structure["head"] not in REAL)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 7, 19, 70])
def test_every_number_of_rows(device, batch):
    case = deep_case(4, (13, 30), device=device)
    assert_equal_draws(sample(case, batch), by_reference(case, batch), torch.float32)


def test_layers_that_shared_memory_does_not_hold(device):
    case = deep_case(3, (40, 2100), device=device)
    assert_equal_draws(sample(case, 5), by_reference(case, 5), torch.float32)


@pytest.mark.parametrize("units", [(300, 130, 70), (130, 300)])
def test_threads_do_not_matter(units):
    case = deep_case(6, units, head="categorical", parameters=5)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        try:
            results.append(sample(case, 11))
        finally:
            torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_inputs_are_not_modified_and_may_be_strided(device):
    case = deep_case(device=device)
    state = case.bias.expand(3, -1).clone()
    before = state.clone()
    want = sample(case, 3, state=state)
    assert torch.equal(state, before)

    def strided(value):
        if isinstance(value, list):
            return [strided(each) for each in value]
        return value.repeat_interleave(2, -1)[..., ::2]

    got = sample(replace(case, tensors={k: strided(v) for k, v in case.tensors.items()}), 3)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.heavy
def test_opcheck_and_compile(device, ops):
    case = deep_case(4, (6, 5), device=device)
    state = case.bias.expand(2, -1).contiguous()
    tensors = tuple(case.tensors.values())
    structure = (case.structure["order"], None, None, None, None, 4, "tanh", "bernoulli", 0, None)
    torch.library.opcheck(ops.deep_nade_sample.default, (state, *tensors, *structure, 3, 0, 0, 4, 1.0))
    torch.compiler.reset()
    compiled = torch.compile(lambda state: sample(case, 2, state=state), fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(state), sample(case, 2, state=state), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": torch.tensor([0, 1, 2, 2])}, "order must be a permutation"),
        ({"out_offsets": torch.tensor([0, 1, 2, 5, 4])}, "out_offsets must"),
        ({"head": "per_variable", "head_kinds": torch.tensor([[9, 0]] * 4)}, "head_kinds must be 0 ... 3, got 9"),
    ],
)
def test_values_that_would_read_outside_raise(change, message):
    case = deep_case(4, (6, 5))
    case.structure |= change
    with pytest.raises(RuntimeError, match=message):
        sample(case, 2)
