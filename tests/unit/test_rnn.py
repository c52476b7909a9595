"""rnn_sample: against its reference and torch.nn, with every cell, head and rule of drawing."""

import contextlib
import itertools

import emulated
import pytest
import torch
from conftest import available_isas, isa
from grids import pairs
from rnn_cases import CELLS, HEADS, assert_equal_bits, assert_equal_draws, by_reference, in_calls, op_case, sample

import ar_fast
from ar_fast import functional, reference

FIXED_SEED = 0
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def few_multiprocessors(emulation):
    """Every thread of a launch is a fiber, and a launch has a block for each multiprocessor."""
    with emulated.gpu(multiprocessors=3) if emulation else contextlib.nullcontext():
        yield


@pytest.mark.parametrize("cell, dtype, layers", pairs(CELLS, DTYPES, [1, 2, 3]))
def test_draws_equal_the_reference(device, cell, dtype, layers):
    case = op_case(3, layers=layers, cell=cell, dtype=dtype, device=device)
    assert_equal_draws(sample(case), by_reference(case), dtype)


@pytest.mark.parametrize("hidden", [1, 7, 19, 64, 111])
@pytest.mark.parametrize("cell", CELLS)
def test_every_number_of_hidden_units(device, cell, hidden):
    case = op_case(2, 4, hidden, 2, cell=cell, device=device)
    assert_equal_draws(sample(case), by_reference(case), torch.float32)


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 4, 5, 7, 19, 70])
def test_every_number_of_rows(device, batch):
    case = op_case(batch, 3, 13, 2, device=device)
    assert_equal_draws(sample(case), by_reference(case), torch.float32)


@pytest.mark.parametrize("head, dtype", pairs(HEADS, [torch.float64, torch.float32, torch.bfloat16]), ids=str)
def test_every_head(device, head, dtype):
    case = op_case(4, head=head, dtype=dtype, device=device, ordered=True, row_bias=True)
    for options in ({}, {"temperature": 0.6, "first_index": 2**40 + 7, "first_position": 2**31}):
        discrete = head != "gaussian_mixture"
        assert_equal_draws(sample(case, **options), by_reference(case, **options), dtype, discrete)


@pytest.mark.parametrize("cell, hidden", [("gru", 512), ("lstm", 300)])
def test_large_models_of_bfloat16(device, emulation, cell, hidden):
    """No block of a GPU holds their weights, so they are multiplied by matrix instructions there."""
    case = op_case(5, 3, hidden, cell=cell, dtype=torch.bfloat16, device=device)
    with emulated.gpu(multiprocessors=16) if emulation else contextlib.nullcontext():
        run = sample(case)
        assert_equal_draws(run, by_reference(case), torch.bfloat16)
        assert_equal_bits(in_calls(case, [0, 1]), run)


@pytest.mark.parametrize("name", available_isas())
@pytest.mark.parametrize("cell", CELLS)
def test_every_instruction_set(name, cell):
    for batch, dtype in ((1, torch.float32), (6, torch.bfloat16), (9, torch.float64)):
        case = op_case(batch, 5, 77, 2, cell=cell, dtype=dtype)
        with isa(name):
            assert_equal_draws(sample(case), by_reference(case), dtype)


def torch_cell(cell, inputs, hidden):
    if cell == "gru":
        return torch.nn.GRUCell(inputs, hidden, dtype=torch.float64)
    if cell == "lstm":
        return torch.nn.LSTMCell(inputs, hidden, dtype=torch.float64)
    return torch.nn.RNNCell(inputs, hidden, nonlinearity="relu" if cell == "rnn_relu" else "tanh", dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("cell", CELLS)
def test_the_cells_are_those_of_torch(device, cell):
    """A run over known values beside torch.nn's cells, step by step."""
    case = op_case(3, 6, 17, 2, cell=cell, dtype=torch.float64, device=device)
    cells = []
    for layer in range(2):
        own = torch_cell(cell, 5 if layer == 0 else 17, 17).to(device)
        own.weight_ih.copy_(case["in_table"].T if layer == 0 else case["in_weights"][0])
        own.bias_ih.copy_(case["in_bias"] if layer == 0 else case["in_biases"][0])
        own.weight_hh.copy_(case["recurrent_weights"][layer])
        own.bias_hh.copy_(case["recurrent_biases"][layer])
        cells.append(own)
    tokens = torch.randint(5, (3, 6), device=device)
    states = list(case["state"])
    cell_states = list(case["cell_state"]) if cell == "lstm" else None
    x = torch.zeros(3, 5, dtype=torch.float64, device=device)
    for p in range(6):
        for layer, own in enumerate(cells):
            if cell == "lstm":
                states[layer], cell_states[layer] = own(x, (states[layer], cell_states[layer]))
            else:
                states[layer] = own(x, states[layer])
            x = states[layer]
        known = torch.ones(3, 6, dtype=torch.bool, device=device)
        run = sample(case, given=tokens.double(), known=known, stop=p + 1)
        torch.testing.assert_close(run.state, torch.stack(states))
        if cell == "lstm":
            torch.testing.assert_close(run.cell_state, torch.stack(cell_states))
        assert torch.equal(run.values, tokens[:, : p + 1].double()) and not run.log_prob.any()
        x = torch.nn.functional.one_hot(tokens[:, p], 5).double()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuts_and_the_batch_do_not_matter(device, cell, dtype):
    """To the bit: a run in calls of any lengths, and a row on its own or among others."""
    case = op_case(6, 9, 21, 2, cell=cell, dtype=dtype, device=device, row_bias=True)
    known = torch.rand(6, 9, device=device) < 0.3
    options = {"given": torch.randint(5, (6, 9), device=device).float(), "known": known}
    options |= {"top_k": 4, "top_p": 0.9, "stop_token": 3, "limits": torch.tensor([0, 9, 5, 7, 12, 1]).to(device)}
    whole = sample(case, **options)
    assert_equal_draws(whole, by_reference(case, **options), dtype)
    for cuts in ([0, 4], [0, 0, 1, 8], list(range(9))):
        assert_equal_bits(in_calls(case, cuts, **options), whole)
    by_row = ("state", "cell_state"), ("last", "in_bias", "given", "known", "limits")
    for i, rows in ((1, slice(1, 2)), (2, slice(2, 6))):
        own = {**case, **options}
        own |= {name: own[name][:, rows] for name in by_row[0] if own[name] is not None}
        own |= {name: own[name][rows] for name in by_row[1]}
        part = sample(own, first_index=i)
        want = [value if value is None else value[:, rows] if value.dim() == 3 else value[rows] for value in whole]
        assert_equal_bits(part, functional.RnnSample(*want))


@pytest.mark.parametrize("hidden", [90, 130])
def test_threads_do_not_matter(hidden):
    case = op_case(5, 6, hidden, 2, cell="lstm")
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        try:
            results.append(sample(case))
        finally:
            torch.set_num_threads(threads)
    for other in results[1:]:
        assert_equal_bits(other, results[0])


def test_a_run_goes_on_from_where_it_is(device):
    """first_position numbers the variables of a run that goes on with calls of their own numbering."""
    case = op_case(3, 8, device=device)
    whole = sample(case)
    first = sample(case, variables=5)
    went_on = {"state": first.state, "last": first.last, "variables": 3, "first_position": 5}
    rest = sample(case, **went_on)
    assert torch.equal(torch.cat([first.values, rest.values], 1), whole.values)
    assert torch.equal(rest.state, whole.state)
    assert_equal_draws(rest, by_reference(case, **went_on), torch.float32)


def test_a_prompt_is_consumed_as_it_would_be_drawn(device):
    case = op_case(4, 9, 33, 2, device=device)
    whole = sample(case)
    given, known = whole.values.clone(), torch.zeros(4, 9, dtype=torch.bool, device=device)
    given[:, 6:] = 0
    for row, length in enumerate((0, 2, 4, 6)):
        known[row, :length] = True
    prompted = sample(case, given=given, known=known)
    assert torch.equal(prompted.values, whole.values) and torch.equal(prompted.state, whole.state)
    every = sample(case, given=whole.values, known=torch.ones_like(known))
    assert torch.equal(every.state, whole.state) and not every.log_prob.any()


def test_rows_that_finish(device):
    """By a stop token that they draw, not one that is given, and at their limits; from then on nothing changes."""
    rows = 24
    case = op_case(rows, 12, 9, 2, cell="lstm", device=device)
    limits = torch.randint(0, 14, (rows,), device=device)
    given = torch.zeros(rows, 12, device=device)
    known = torch.zeros(rows, 12, dtype=torch.bool, device=device)
    known[:, :2] = True
    options = {"given": given, "known": known, "stop_token": 0, "limits": limits}
    run = sample(case, **options)
    assert_equal_draws(run, by_reference(case, **options), torch.float32)
    ends = torch.full((rows,), 12, device=device)
    for row in range(rows):
        drawn = [p for p in range(2, 12) if run.values[row, p] == 0]
        ends[row] = min(limits[row].item(), drawn[0] + 1 if drawn else 12, 12)
    assert 0 < (ends < limits.clamp(max=12)).sum() < rows
    until = {end: sample(case, **options, stop=end) for end in set(ends.tolist())}
    for row in range(rows):
        end = ends[row].item()
        assert not run.values[row, end:].any()
        alone = until[end]
        assert torch.equal(alone.state[:, row], run.state[:, row])
        assert torch.equal(alone.cell_state[:, row], run.cell_state[:, row]) and alone.last[row] == run.last[row]
        torch.testing.assert_close(alone.log_prob[row], run.log_prob[row], rtol=1e-13, atol=1e-13)
    finished = torch.ones(rows, dtype=torch.bool, device=device)
    still = sample(case, **options | {"finished": finished})
    assert torch.equal(still.state, case["state"]) and still.finished.all() and not still.log_prob.any()
    assert not still.values.any()
    filled = sample(case, finished=finished, stop_token=4)
    assert (filled.values == 4).all()


def likeliest_by_definition(logits, temperature, top_k, top_p):
    """By Python's own sort: which categories may be drawn."""
    probabilities = (logits / temperature).softmax(-1)
    order = sorted(range(len(logits)), key=lambda k: (-logits[k].item(), k))[: top_k or None]
    total, kept, reached = sum(probabilities[k].item() for k in order), [], 0.0
    for k in order:
        if kept and top_p < 1 and reached >= top_p * total:
            break
        kept.append(k)
        reached += probabilities[k].item()
    return sorted(kept)


@pytest.mark.parametrize("top_k, top_p", [(0, 0.5), (1, 1.0), (3, 1.0), (3, 0.7), (12, 0.9), (0, 1e-9), (12, 1.0)])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_truncated_draws(device, emulation, top_k, top_p, temperature):
    """Every category that the rule keeps is drawn and no other, as often as it should be; ties go to the first."""
    batch = 200 if emulation else 4000
    logits = torch.tensor([0.5, 2, 1, 2, -30, 1, 1.5, 0.25, -1, 1, 0, -0.0])
    case = op_case(batch, 1, 1, device=device)
    case |= {"out_weight": torch.zeros(12, 1, device=device), "out_bias": logits.to(device)}
    case |= {"in_table": torch.zeros(12, 3, device=device)}
    rule = {"top_k": top_k, "top_p": top_p, "temperature": temperature}
    run = sample(case, **rule)
    assert torch.equal(run.values, by_reference(case, **rule).values.float())
    kept = likeliest_by_definition(logits.double(), temperature, top_k, top_p)
    share = torch.zeros(12, dtype=torch.float64)
    share[kept] = (logits.double() / temperature)[kept].softmax(-1)
    counts = torch.bincount(run.values.flatten().long().cpu(), minlength=12)
    assert not counts[share == 0].any()
    spread = (batch * share * (1 - share)).sqrt()
    assert ((counts - batch * share).abs() <= 5 * spread + 1e-9).all()
    torch.testing.assert_close(run.log_prob, logits.double().log_softmax(-1)[run.values[:, 0].long().cpu()].to(device),
                               rtol=1e-5, atol=1e-5)  # fmt: skip


def test_inputs_are_not_modified_and_may_be_strided(device):
    case = op_case(3, 5, 12, 2, cell="lstm", device=device)
    before = {name: value.clone() for name, value in case.items() if isinstance(value, torch.Tensor)}
    want = sample(case)
    assert all(torch.equal(case[name], value) for name, value in before.items())

    def strided(value):
        if isinstance(value, list):
            return [strided(each) for each in value]
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        return value.repeat_interleave(2, -1)[..., ::2]

    assert_equal_bits(sample({name: strided(value) for name, value in case.items()}), want)


def test_tables_and_biases_of_either_dtype(device):
    case = op_case(3, 5, 12, 2, dtype=torch.bfloat16, device=device)
    case["in_table"] = case["in_table"].bfloat16()
    compute = {
        name: [each.float() for each in case[name]] if isinstance(case[name], list) else case[name].float()
        for name in ("in_table", "in_bias", "in_biases", "recurrent_biases", "out_bias")
    }
    assert_equal_bits(sample(case, **compute), sample(case))


def schema_arguments(case, monkeypatch):
    got = []
    with monkeypatch.context() as patch:
        patch.setattr(functional.recurrent, "call", lambda name, *arguments: got.extend(arguments) or [None] * 6)
        sample(case)
    return got


@pytest.mark.heavy
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_opcheck_and_compile(device, ops, cell, monkeypatch):
    case = op_case(2, 4, 8, 2, cell=cell, device=device)
    torch.library.opcheck(ops.rnn_sample.default, tuple(schema_arguments(case, monkeypatch)))
    torch.compiler.reset()
    compiled = torch.compile(lambda state: sample(case, state=state), fullgraph=True, backend="aot_eager")
    assert_equal_bits(compiled(case["state"]), sample(case))


def test_calls_from_several_threads_at_once():
    import concurrent.futures

    case = op_case(4, 6, 96)
    want = sample(case)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: sample(case), range(8)):
            assert_equal_bits(got, want)


def test_explain_says_what_runs():
    (line,) = ar_fast.explain("rnn_sample", **op_case(2, layers=2))
    assert line.startswith("rnn_sample on the CPU: ") and "2 layers of H = 19" in line


ONE_LAYER = op_case()
BAD = {
    "cell must be gru, lstm, rnn or rnn_relu, got 'elman'": {"cell": "elman"},
    "recurrent_weights must hold one tensor per layer, 1 to 16, got 0": {"recurrent_weights": []},
    "recurrent_biases must hold one tensor per layer, 1, got 2": {"recurrent_biases": [torch.zeros(57)] * 2},
    "in_weights must hold one tensor per layer after the first, 0, got 1": {"in_weights": [torch.zeros(57, 19)]},
    "in_biases must hold one tensor per layer after the first, 0, got 1": {"in_biases": [torch.zeros(57)]},
    r"recurrent_weights\[0\] must have 57": {"recurrent_weights": [torch.zeros(56, 19)]},
    r"recurrent_weights\[0\] must be float32": {"recurrent_weights": [torch.zeros(57, 19, dtype=torch.int64)]},
    r"recurrent_biases\[0\] must have 57": {"recurrent_biases": [torch.zeros(19)]},
    r"recurrent_biases\[0\] must have the dtype": {"recurrent_biases": [torch.zeros(57, dtype=torch.float64)]},
    "cell_state must be given for an lstm, and for no other cell, got some": {"cell_state": torch.zeros(1, 4, 19)},
    "state must have 1 layers": {"state": torch.zeros(2, 4, 19)},
    "state must have 19 hidden": {"state": torch.zeros(1, 4, 18)},
    "state must be float32": {"state": torch.zeros(1, 4, 19, dtype=torch.float64)},
    "last must have 4 rows": {"last": torch.zeros(3)},
    "last must be float32": {"last": torch.zeros(4, dtype=torch.int64)},
    "finished must be bool": {"finished": torch.zeros(4)},
    "limits must be int64": {"limits": torch.zeros(4)},
    "limits must have 4 rows": {"limits": torch.zeros(5, dtype=torch.int64)},
    "in_table must have 5 rows, one per category": {"in_table": torch.zeros(4, 57)},
    "in_table must have 57 columns": {"in_table": torch.zeros(5, 56)},
    r"in_bias must have shape \(G H\) or": {"in_bias": torch.zeros(1, 1, 57)},
    "in_bias must have 4 rows": {"in_bias": torch.zeros(5, 57)},
    "out_weight must have 19 columns": {"out_weight": torch.zeros(5, 18)},
    "out_bias must have 5 entries": {"out_bias": torch.zeros(4)},
    "out_weight must have the dtype": {"out_weight": torch.zeros(5, 19, dtype=torch.bfloat16)},
    "order must have 9 entries": {"order": torch.arange(8)},
    "given and known come together": {"given": torch.zeros(4, 9)},
    "given must have 4 rows, as last has": {"given": torch.zeros(3, 9), "known": torch.zeros(3, 9).bool()},
    "positions must satisfy": {"stop": 10},
    "variables must be positive": {"variables": 0, "stop": 0},
    "first_position must not be negative, got -1": {"first_position": -1},
    "temperature must be positive": {"temperature": 0.0},
    "top_k must be 0 for all categories, or 1 ... K = 5, got 6": {"top_k": 6},
    "top_k must be 0 for all categories, or 1 ... K = 5, got -1": {"top_k": -1},
    r"top_p must lie in \(0, 1\], got 0": {"top_p": 0.0},
    r"top_p must lie in \(0, 1\], got nan": {"top_p": float("nan")},
    "stop_token must be -1 for none, or a category of a categorical head, got 5": {"stop_token": 5},
    "head must be": {"head": "per_variable"},
    "algorithm must be one of auto, block, grid, got 'fast'": {"algorithm": "fast"},
}


@pytest.mark.parametrize("message, options", BAD.items(), ids=BAD)
def test_bad_input(device, message, options):
    def moved(value):
        if isinstance(value, list):
            return [moved(each) for each in value]
        return value.to(device) if isinstance(value, torch.Tensor) else value

    options = {name: moved(value) for name, value in options.items()}
    with pytest.raises(RuntimeError, match=f"rnn_sample: {message}"):
        sample(op_case(device=device), **options)


def test_rules_of_other_heads(device):
    case = op_case(head="bernoulli", device=device)
    with pytest.raises(RuntimeError, match="top_k and top_p must be 0 and 1 except for a categorical head, got 1"):
        sample(case, top_k=1)
    with pytest.raises(RuntimeError, match="stop_token must be -1"):
        sample(case, stop_token=1)
    with pytest.raises(RuntimeError, match="in_table must have 1 row, which a value scales"):
        sample(case, in_table=torch.zeros(2, 57, device=device))
    with pytest.raises(RuntimeError, match=r"cell_state must be given for an lstm, .*, got none"):
        sample(op_case(cell="lstm", device=device), cell_state=None)


def test_bad_values_on_the_cpu():
    case = op_case(2, 4)
    with pytest.raises(RuntimeError, match="rnn_sample: order must be a permutation"):
        sample(case, order=torch.zeros(4, dtype=torch.long))


def test_empty_calls(device):
    for batch, stop in ((0, 4), (3, 0)):
        run = sample(op_case(batch, 4, cell="lstm", device=device), stop=stop)
        assert run.values.shape == (batch, stop) and run.state.shape == (1, batch, 19)
        assert run.finished.shape == run.last.shape == run.log_prob.shape == (batch,)


def test_no_category_but_the_first_of_equal_ones():
    """Of categories that are equally likely top_k keeps the first, whatever the draw."""
    for top_k in range(1, 6):
        case = op_case(50, 1, 1)
        case |= {"out_weight": torch.zeros(5, 1), "out_bias": torch.zeros(5)}
        values = sample(case, top_k=top_k).values
        assert set(values.flatten().tolist()) == set(itertools.islice(range(5), top_k))


def test_the_reference_says_the_same_of_truncation():
    logits = torch.tensor([[0.0, 1.0, 1.0, -2.0], [3.0, 3.0, 3.0, 3.0]])
    kept = reference.likeliest(logits, logits.exp().double(), 3, 0.8)
    for row in range(2):
        assert kept[row].nonzero().flatten().tolist() == likeliest_by_definition(logits[row].double(), 1.0, 3, 0.8)
