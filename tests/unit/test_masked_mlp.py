"""masked_mlp_sample: equal to its reference draw by draw, however the work is cut, each unit computed once."""

import contextlib
import ctypes
import re

import emulated
import pytest
import torch
from conftest import available_isas, isa
from grids import pairs
from mlp_cases import NETWORKS, assert_equal_draws, by_reference, mlp_case, sample
from torch import Tensor

from ar_fast import _library, functional, reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ACTIVATIONS = list(reference.MLP_ACTIVATIONS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "size", [(0, 3, [5]), (1, 1, [1]), (5, 7, [19]), (3, 33, [111, 7]), (70, 5, [4, 3, 2]), (2, 19, [989])], ids=str
)
def test_draws_equal_the_reference(device, dtype, size):
    batch, variables, hidden = size
    case = mlp_case(variables, hidden, dtype=dtype, device=device)
    assert_equal_draws(sample(case, batch), by_reference(case, batch), dtype)


HEADS = ["categorical", "gaussian_mixture", "logistic_mixture", "per_variable"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_every_head(device, head, ragged, dtype):
    for batch, variables, hidden, components in ((0, 3, [5], 2), (5, 1, [1], 1), (3, 9, [19, 8], 4), (35, 4, [7], 7)):
        case = mlp_case(
            variables,
            hidden,
            dtype=dtype,
            device=device,
            activation="tanh",
            head=head,
            components=components,
            ragged=ragged,
        )
        assert_equal_draws(sample(case, batch, temperature=0.8), by_reference(case, batch, temperature=0.8), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("network", NETWORKS[1:])
def test_every_network(device, network, dtype, emulation):
    most = 9 if emulation else 70
    for batch, variables, hidden in ((0, 3, [5]), (1, 1, [1]), (5, 7, [19] * 3), (3, 33, [11] * 5), (most, 40, [130])):
        case = mlp_case(variables, hidden, dtype=dtype, device=device, activation="tanh", network=network)
        assert_equal_draws(sample(case, batch), by_reference(case, batch), dtype)


@pytest.mark.parametrize("name", available_isas())
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_and_instruction_set(name, network):
    case = mlp_case(37, [23, 23, 23], activation="elu", network=network)
    with isa(name):
        assert_equal_draws(sample(case, 37), by_reference(case, 37), torch.float32)


def test_the_longest_program(device):
    case = mlp_case(9, [4] * 21, device=device, activation="tanh", network="direct residual")
    assert len(case.program) == 33
    assert_equal_draws(sample(case, 5), by_reference(case, 5), torch.float32)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_can_be_cut_anywhere(device, emulation, network):
    """In rows and in positions, also within a block of positions: bit for bit, in every value of the state."""
    batch = 11 if emulation else 37
    case = mlp_case(39, [30, 30, 30], device=device, activation="tanh", network=network, context_rows=batch)
    given, known = torch.ones(batch, 39, device=device), torch.rand(batch, 39, device=device) < 0.2
    whole = sample(case, batch, given=given, known=known)
    pieces, state = [], None
    for begin, end in ((0, 3), (3, 4), (4, 21), (21, 39)):
        pieces.append(sample(case, batch, given=given, known=known, state=state, start=begin, stop=end))
        state = pieces[-1][2]
    assert torch.equal(torch.cat([p[0] for p in pieces], 1), whole[0]) and torch.equal(state, whole[2])
    cuts = [slice(0, 1), slice(1, batch // 2), slice(batch // 2, batch)]
    parts = [sample(case, c.stop - c.start, rows=c, given=given[c], known=known[c], first_index=c.start) for c in cuts]
    for together, *cut in zip(whole, *parts, strict=True):
        assert torch.equal(together, torch.cat(cut))


@pytest.mark.parametrize("name", available_isas())
@pytest.mark.parametrize("head", HEADS)
def test_every_head_and_instruction_set(name, head):
    case = mlp_case(7, [23], activation="tanh", head=head, components=21, ragged=True)
    with isa(name):
        assert_equal_draws(sample(case, 37), by_reference(case, 37), torch.float32)


@pytest.mark.parametrize("head, components", pairs(HEADS, [2, 500]))
def test_heads_can_be_cut_anywhere_and_take_what_is_known(device, head, components):
    """In rows and in positions, with values that are known; at most more parameters than shared memory holds."""
    case = mlp_case(9, [30, 9], device=device, activation="tanh", head=head, components=components, ragged=True)
    given = by_reference(case, 7, seed=3)[0].float()
    given = torch.zeros_like(given).index_copy(1, case.order, given)
    known = torch.rand(7, 9, device=device) < 0.3
    whole = sample(case, 7, given=given, known=known)
    assert_equal_draws(whole, by_reference(case, 7, given=given, known=known), torch.float32)
    pieces, state = [], None
    for begin, end in ((0, 4), (4, 9)):
        pieces.append(sample(case, 7, given=given, known=known, state=state, start=begin, stop=end))
        state = pieces[-1][2]
    assert torch.equal(torch.cat([p[0] for p in pieces], 1), whole[0]) and torch.equal(state, whole[2])
    rows = [
        sample(case, 3, given=given[:3], known=known[:3]),
        sample(case, 4, given=given[3:], known=known[3:], first_index=3),
    ]
    for together, first, second in zip(whole, *rows, strict=True):
        assert torch.equal(together, torch.cat([first, second]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(device, activation, dtype):
    case = mlp_case(9, [17, 8], dtype=dtype, device=device, activation=activation)
    assert_equal_draws(sample(case, 6), by_reference(case, 6), dtype)


@pytest.mark.parametrize("activation, dtype, name", pairs(ACTIVATIONS, DTYPES, available_isas()), ids=str)
def test_every_instruction_set(name, activation, dtype):
    case = mlp_case(11, [40, 13], dtype=dtype, activation=activation)
    with isa(name):
        assert_equal_draws(sample(case, 37), by_reference(case, 37), dtype)


def test_more_units_than_shared_memory_holds(device):
    case = mlp_case(9, [4100], device=device)
    assert_equal_draws(sample(case, 3), by_reference(case, 3), torch.float32)


def test_no_hidden_layer(device):
    case = mlp_case(12, [], device=device)
    assert_equal_draws(sample(case, 5), by_reference(case, 5), torch.float32)


def test_a_context_enters_the_first_layer(device):
    case = mlp_case(8, [21, 6], device=device, context_rows=5)
    assert_equal_draws(sample(case, 5), by_reference(case, 5), torch.float32)
    halves = [sample(case, 3, rows=slice(0, 3)), sample(case, 2, rows=slice(3, 5), first_index=3)]
    for whole, first, second in zip(sample(case, 5), *halves, strict=True):
        assert torch.equal(whole, torch.cat([first, second]))


def test_known_variables_are_taken_not_drawn(device):
    case = mlp_case(9, [21], device=device)
    given = (torch.rand(6, 9, device=device) < 0.5).float()
    known = torch.rand(6, 9, device=device) < 0.5
    options = {"given": given, "known": known, "temperature": 0.7, "first_index": 2**40 + 3}
    got = sample(case, 6, **options)
    assert_equal_draws(got, by_reference(case, 6, **options), torch.float32)
    drawn = torch.empty_like(given)
    drawn[:, case.order] = got[0]
    assert torch.equal(drawn[known], given[known])


def test_sample_numbers_go_on_past_32_bits(device):
    case = mlp_case(6, [9], device=device)
    options = {"first_index": 2**32 - 5}
    assert_equal_draws(sample(case, 20, **options), by_reference(case, 20, **options), torch.float32)


def test_log_prob_is_at_temperature_one(device):
    case = mlp_case(10, [30], device=device)
    assert_equal_draws(sample(case, 6, temperature=2.5), by_reference(case, 6, temperature=2.5), torch.float32)
    known = torch.ones(6, 10, dtype=torch.bool, device=device)
    _, log_prob, _ = sample(case, 6, given=torch.ones(6, 10, device=device), known=known)
    assert (log_prob == 0).all()


def test_batches_can_be_cut_anywhere(device):
    case = mlp_case(17, [70, 9], device=device)
    whole = sample(case, 83)
    parts = [sample(case, end - begin, first_index=begin) for begin, end in ((0, 1), (1, 34), (34, 83))]
    for together, *cut in zip(whole, *parts, strict=True):
        assert torch.equal(together, torch.cat(cut))


def test_positions_can_be_cut_anywhere(device):
    case = mlp_case(17, [70, 9], device=device)
    values, log_prob, state = sample(case, 6)
    pieces, start = [], None
    for begin, end in ((0, 5), (5, 5), (5, 6), (6, 17)):
        before = None if start is None else start.clone()
        pieces.append(sample(case, 6, state=start, start=begin, stop=end))
        assert before is None or torch.equal(before, start), "the state that came in was modified"
        start = pieces[-1][2]
    assert torch.equal(torch.cat([p[0] for p in pieces], 1), values)
    assert torch.equal(start, state)
    torch.testing.assert_close(sum(p[1] for p in pieces), log_prob, rtol=1e-13, atol=1e-13)


def test_threads_do_not_matter():
    case = mlp_case(40, [130])
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        try:
            results.append(sample(case, 75))
        finally:
            torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("network", ["plain", "residual"])
def test_threads_split_the_units_of_few_rows(network, dtype):
    case = mlp_case(19, [701, 701, 701], network=network, dtype=dtype)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        try:
            drawn, said = explained(lambda: sample(case, 3))
        finally:
            torch.set_num_threads(threads)
        assert f"units split {count} ways" in said
        assert int(re.search(r"(\d+) multiply-adds per row", said)[1]) == sum(int(e.sum()) for e in case.extents)
        results.append(drawn)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("head", ["bernoulli", *HEADS])
def test_sampling_costs_one_masked_forward_pass(head, network, activation, context):
    """Counted by the kernel where it multiplies, against the ones of the masks."""
    case = mlp_case(
        23, [30, 30, 30], head=head, components=1 if head == "bernoulli" else 5, ragged=head != "bernoulli",
        network=network, activation=activation, context_rows=5 if context else 0,
    )  # fmt: skip
    assert_multiply_adds(case)


@pytest.mark.parametrize("hidden", [[], [50], [300, 20], [8, 8, 8]], ids=str)
def test_sampling_of_a_stack_costs_one_masked_forward_pass(hidden):
    assert_multiply_adds(mlp_case(23, hidden))


def assert_multiply_adds(case):
    _, said = explained(lambda: sample(case, 5))
    done = int(re.search(r"(\d+) multiply-adds per row", said)[1])
    assert 0 < done <= 1.1 * sum(int(extents.sum()) for extents in case.extents)


def test_a_categorical_variable_has_one_column_or_one_for_each_category():
    case = mlp_case(4, [6], head="categorical", components=4)
    case.in_offsets = torch.tensor([0, 3, 8, 12, 16])
    case.extents[0].zero_()
    with pytest.raises(RuntimeError, match=r"one column of .* or one for each of 4 categories, got 3 at position 0"):
        sample(case, 2)


def test_a_value_is_added_once_it_is_ready():
    """Layer 1 activates what layer 0 gives, and one unit too early."""
    ends = [torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0, 2, 2], dtype=torch.int32)]
    extents = [torch.tensor(e, dtype=torch.int32) for e in ([1, 2], [0, 0, 0])]
    program = [functional.MlpLayer((0,)), functional.MlpLayer(add=1), functional.MlpLayer((2,), activated=False)]
    with pytest.raises(RuntimeError, match=r"layer 1 must compute at position 1 at most the 1 units .* ready .* got 2"):
        functional.masked_mlp_sample(
            torch.zeros(1, 7), [torch.ones(2, 3), torch.ones(3, 2)], [torch.zeros(2), torch.zeros(0), torch.zeros(3)],
            extents, ends, program=program, seed=1,
        )  # fmt: skip


def test_a_layer_has_two_sources_at_most():
    with pytest.raises(ValueError, match="MlpLayer: sources must be at most two values, got"):
        functional.MlpLayer((0, 0, 0)).numbers()


@pytest.fixture
def blocks(device, emulation):
    """A context in which networks are drawn in blocks of positions, however small; elsewhere it changes nothing."""
    return emulated.drawn_in_blocks if emulation else contextlib.nullcontext


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("size", "network"),
    [
        ((1, 17, [1]), "plain"),
        ((3, 111, []), "plain"),
        ((70, 19, [111]), "plain"),  # two tiles of rows
        ((2, 33, [700, 1]), "plain"),  # tiles of units, chunks of inputs, several warps
        ((3, 49, [7, 19, 7]), "skips"),
        ((3, 33, [11] * 5), "direct residual"),
    ],
    ids=str,
)
def test_blocks_of_positions(device, blocks, size, network, dtype):
    batch, variables, hidden = size
    case = mlp_case(variables, hidden, dtype=dtype, device=device, activation="tanh", network=network)
    with blocks():
        assert_equal_draws(sample(case, batch), by_reference(case, batch), dtype)


@pytest.mark.parametrize("head", ["bernoulli", *HEADS])
@pytest.mark.parametrize("hidden", [[20, 20, 20], [90, 300]], ids=str)
def test_blocks_can_be_cut_anywhere(device, blocks, head, hidden):
    """In rows and in positions, bit for bit, with values that are known."""
    network, batch = "residual" if len(hidden) == 3 else "plain", 5
    case = mlp_case(
        39, hidden, device=device, activation="tanh", network=network, context_rows=batch, head=head,
        components=1 if head == "bernoulli" else 4, ragged=head != "bernoulli",
    )  # fmt: skip
    known = torch.rand(batch, 39, device=device) < 0.2
    given = torch.zeros(batch, 39, device=device)
    with blocks():
        whole = sample(case, batch, given=given, known=known)
        assert_equal_draws(whole, by_reference(case, batch, given=given, known=known), torch.float32)
        pieces, state = [], None
        for begin, end in ((0, 3), (3, 4), (4, 21), (21, 21), (21, 39)):
            pieces.append(sample(case, batch, given=given, known=known, state=state, start=begin, stop=end))
            state = pieces[-1][2]
        cuts = [slice(0, 1), slice(1, batch)]
        parts = [
            sample(case, c.stop - c.start, rows=c, given=given[c], known=known[c], first_index=c.start) for c in cuts
        ]
    assert torch.equal(torch.cat([p[0] for p in pieces], 1), whole[0]) and torch.equal(state, whole[2])
    for together, *cut in zip(whole, *parts, strict=True):
        assert torch.equal(together, torch.cat(cut))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_do_not_see_what_is_masked(device, blocks, dtype):
    """Some units see little of what is known before their block: weights and values past it are not finite."""
    case = mlp_case(37, [40, 30], dtype=dtype, device=device)
    for weight, extents in zip(case.weights, case.extents, strict=True):
        extents.copy_(extents // 3)
        weight.masked_fill_(torch.arange(weight.shape[1], device=device) >= extents[:, None], float("nan"))
    given = torch.full((5, 37), float("nan"), device=device)
    known = torch.zeros(5, 37, dtype=torch.bool, device=device)
    known[0, case.order[5]] = True
    given = given.to(reference.compute_dtype(dtype))
    at_once = sample(case, 5, given=given, known=known)
    with blocks():
        values, log_prob, state = sample(case, 5, given=given, known=known)
    assert torch.equal(values.nan_to_num(7), at_once[0].nan_to_num(7)) and 1 < state[0].isnan().sum() < 90
    torch.testing.assert_close(log_prob, at_once[1], rtol=1e-4, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(state, at_once[2], rtol=1e-4, atol=1e-4, equal_nan=True)


def test_large_networks_are_drawn_in_blocks():
    """By the network's sizes alone: what a GPU draws in one launch and what in blocks."""
    cuts = {
        (784, 500, 784): (784, 1, 4),
        (784, 8000, 8000, 784): (16, 3, 1),
        (64, 512, 512, 64): (64, 2, 1),
        (784, 784): (784, 1, 4),
        (12288, 12288): (16, 1, 4),
        (16, 8000, 16): (16, 8, 1),
    }
    library = emulated.load()
    for widths, want in cuts.items():
        for batch in (1, 128):
            got = (ctypes.c_int64 * 4)()
            library.ar_fast_test_masked_mlp_cut(
                (ctypes.c_int64 * len(widths))(*widths), ctypes.c_int64(len(widths) - 1), ctypes.c_int64(batch), got
            )
            assert tuple(got[:3]) == want, widths


def explained(call):
    _library._C.explain_begin()
    result = call()
    return result, " ".join(_library._C.explain_end())


@pytest.mark.heavy
def test_opcheck(device, ops):
    case = mlp_case(5, [6, 6, 6], device=device, network="direct residual")
    state = torch.zeros(3, case.state_features, device=device)
    arguments = (
        state, case.weights, case.biases, case.extents, case.unit_ends, case.numbers, case.order, None, None, None,
        None, 5, "relu", "bernoulli", 0, None, 3, 0, 0, 5, 1.0,
    )  # fmt: skip
    torch.library.opcheck(ops.masked_mlp_sample.default, arguments)


BAD_INPUTS = {
    "activation must be relu, sigmoid, tanh, .* or leaky_relu, got 'swish'": ("activation", "swish"),
    r"state must have 8 columns": ("state", torch.zeros(2, 7)),
    "state must be float32|state must be Float": ("state", torch.zeros(2, 8, dtype=torch.float64)),
    r"weights\[1\] must have 5 columns": ("weights", [torch.zeros(5, 3), torch.zeros(3, 4)]),
    r"weights\[1\] must have the dtype of weights\[0\]": ("weights", [torch.zeros(5, 3), torch.zeros(3, 5).double()]),
    r"biases must hold one tensor per layer, 2, got 1": ("biases", [torch.zeros(5)]),
    r"biases\[0\] must have shape \(units\) or \(B, units\)": ("biases", [torch.zeros(1, 1, 5), torch.zeros(3)]),
    r"biases\[1\] must have 2 rows, as state has": ("biases", [torch.zeros(5), torch.zeros(4, 3)]),
    r"biases\[0\] must have 5 units": ("biases", [torch.zeros(4), torch.zeros(3)]),
    r"extents\[0\] must be int|extents\[0\] must be Int": ("extents", [torch.zeros(5), torch.zeros(3)]),
    r"unit_ends must hold one tensor per layer but the last, 1, got 0": ("unit_ends", []),
    r"program must have 4 numbers for each of 1 to 33 layers, got 5 numbers": ("program", [0, -1, -1, 1, 1]),
    r"program must have 4 numbers for each of 1 to 33 layers, got 136": ("program", [0, -1, -1, 1] * 34),
    r"program\[5\] must be -1 or a value before layer 1, 0 ... 1, got 2": ("program", [0, -1, -1, 1, 1, 2, -1, 0]),
    r"program\[6\] must be -1 or a value before layer 1, 0 ... 1, got -2": ("program", [0, -1, -1, 1, 1, -1, -2, 0]),
    r"program\[7\] must be 0 or 1, got 2": ("program", [0, -1, -1, 1, 1, -1, -1, 2]),
    r"layer 1 of program must have a first term, or no term and a value": ("program", [0, -1, -1, 1, -1, 1, 0, 0]),
    r"layer 0 of program must have a first term, got": ("program", [-1, -1, 0, 1, 1, -1, -1, 0]),
    r"weights must hold one tensor per term of program, 3, got 2": ("program", [0, -1, -1, 1, 1, 0, -1, 0]),
    r"layer 1 of program must add a value of as many units, 3, got 5": ("program", [0, -1, -1, 1, 1, -1, 1, 0]),
    r"unit_ends\[0\] must have 3 entries": ("unit_ends", [torch.zeros(4, dtype=torch.int32)]),
    "order must have 3 entries": ("order", torch.arange(4)),
    "given and known come together": ("given", torch.zeros(2, 3)),
    "positions must satisfy 0 <= start <= stop <= D = 3": ("stop", 4),
    "temperature must be positive, got 0": ("temperature", 0.0),
}


@pytest.mark.parametrize("message", BAD_INPUTS)
def test_bad_input(device, ops, message):
    arguments = {
        "state": torch.zeros(2, 8), "weights": [torch.zeros(5, 3), torch.zeros(3, 5)],
        "biases": [torch.zeros(5), torch.zeros(3)],
        "extents": [torch.zeros(5, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)],
        "unit_ends": [torch.zeros(3, dtype=torch.int32)], "program": [0, -1, -1, 1, 1, -1, -1, 0],
        "order": None, "in_offsets": None, "out_offsets": None,
        "given": None, "known": None, "variables": 3, "activation": "relu", "head": "bernoulli", "levels": 0,
        "head_kinds": None, "seed": 1, "first_index": 0, "start": 0, "stop": 3, "temperature": 1.0,
    }  # fmt: skip
    name, value = BAD_INPUTS[message]
    arguments[name] = value

    def move(value):
        if isinstance(value, list):
            return [move(v) for v in value]
        return value.to(device) if isinstance(value, Tensor) else value

    with pytest.raises(RuntimeError, match=f"masked_mlp_sample: ({message})"):
        ops.masked_mlp_sample(*map(move, arguments.values()))


@pytest.mark.parametrize(
    ("message", "change"),
    {
        r"extents\[0\] must ascend within 0 ... 3, got 1 after 2": ("extents", [[2, 1], [0, 1, 2]]),
        r"extents\[1\]\[0\] must be at most 0, the inputs ready at .* 0 .*, got 1": ("extents", [[1, 2], [1, 1, 2]]),
        r"unit_ends\[0\] must ascend within 0 ... 2, got 3": ("unit_ends", [[0, 1, 3]]),
        r"extents\[0\]\[0\] must be at most 0, the inputs ready at position 0 .*, got 1": ("unit_ends", [[1, 1, 2]]),
        r"order must be a permutation": ("order", [0, 0, 1]),
    }.items(),
)
def test_bad_schedules_on_the_cpu(message, change):
    arguments = {"extents": [[1, 2], [0, 1, 2]], "unit_ends": [[0, 1, 2]], "order": [2, 0, 1]}
    arguments[change[0]] = change[1]
    with pytest.raises(RuntimeError, match=f"masked_mlp_sample: {message}"):
        functional.masked_mlp_sample(
            torch.zeros(1, 5), [torch.ones(2, 3), torch.ones(3, 2)], [torch.zeros(2), torch.zeros(3)],
            [torch.tensor(e, dtype=torch.int32) for e in arguments["extents"]],
            [torch.tensor(e, dtype=torch.int32) for e in arguments["unit_ends"]],
            order=torch.tensor(arguments["order"]), seed=1,
        )  # fmt: skip
