"""Calls of rnn_sample for the tests."""

import torch

from ar_fast import functional, reference

CELLS = ("gru", "lstm", "rnn", "rnn_relu")
# Of each head, how many categories or components.
HEADS = {"bernoulli": 1, "categorical": 5, "many categories": 40, "gaussian_mixture": 2, "logistic_mixture": 7}


def op_case(
    batch=4,
    variables=9,
    hidden=19,
    layers=1,
    *,
    cell="gru",
    head="categorical",
    row_bias=False,
    ordered=False,
    dtype=torch.float32,
    device="cpu",
):
    """The keyword arguments of functional.rnn_sample, for a run that begins."""
    count, head = HEADS[head], "categorical" if head == "many categories" else head
    parameters = 3 * count if head.endswith("mixture") else count
    rows, compute = reference.GATES[cell] * hidden, reference.compute_dtype(dtype)
    # Real draws feed back: with small weights rounding does not grow from one to the next.
    size = 0.3 if head.endswith("mixture") or cell == "rnn_relu" else 1.0

    def draw(*shape, scale=size, dtype=dtype):
        return (torch.randn(*shape) * scale).to(device=device, dtype=dtype)

    state = draw(layers, batch, hidden, dtype=compute)
    return {
        "state": state,
        "cell_state": draw(layers, batch, hidden, dtype=compute) if cell == "lstm" else None,
        "last": torch.zeros(batch, dtype=compute, device=device),
        "in_table": draw(parameters if head == "categorical" else 1, rows, dtype=compute),
        "in_bias": draw(batch, rows, dtype=compute) if row_bias else draw(rows),
        "in_weights": [draw(rows, hidden, scale=size / hidden**0.5) for _ in range(layers - 1)],
        "in_biases": [draw(rows) for _ in range(layers - 1)],
        "recurrent_weights": [draw(rows, hidden, scale=size / hidden**0.5) for _ in range(layers)],
        "recurrent_biases": [draw(rows) for _ in range(layers)],
        "out_weight": draw(parameters, hidden, scale=2 * size / hidden**0.5),
        "out_bias": draw(parameters),
        "order": torch.randperm(variables).to(device) if ordered else None,
        "variables": variables,
        "seed": 11,
        "cell": cell,
        "head": head,
        "levels": 9 if head == "logistic_mixture" else 0,
    }


def sample(case, **options):
    return functional.rnn_sample(**{**case, **options})


def by_reference(case, **options):
    """What the reference draws in float64."""
    arguments = {**case, **options}
    arguments = {
        "finished": None, "given": None, "known": None, "limits": None, "first_index": 0, "first_position": 0,
        "start": 0, "stop": arguments["variables"], "temperature": 1.0, "top_k": 0, "top_p": 1.0, "stop_token": -1,
        **arguments,
    }  # fmt: skip

    def upcast(value):
        if isinstance(value, list):
            return [upcast(each) for each in value]
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return functional.RnnSample(*reference.rnn_sample(**{name: upcast(value) for name, value in arguments.items()}))


def assert_equal_draws(got, want, dtype, discrete=True):
    """Draws may differ only where rounding decides, which these seeds do not hit; the rest agrees within rounding."""
    compute = reference.compute_dtype(dtype)
    assert got.log_prob.dtype == torch.float64
    assert got.values.dtype == got.state.dtype == got.last.dtype == compute
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-4}
    if discrete:
        torch.testing.assert_close(got.values.double(), want.values, rtol=0, atol=1e-6)
    for name in ("values", "log_prob", "state", "last"):
        torch.testing.assert_close(getattr(got, name).double(), getattr(want, name), **tolerance)
    assert torch.equal(got.finished, want.finished)
    if got.cell_state is not None:
        torch.testing.assert_close(got.cell_state.double(), want.cell_state, **tolerance)


def assert_equal_bits(a, b):
    """Two results, all but log_prob, which is a sum of the draws of a call, to the bit."""
    for name in ("values", "state", "cell_state", "last", "finished"):
        one, other = getattr(a, name), getattr(b, name)
        assert one is other or torch.equal(one, other), name
    torch.testing.assert_close(a.log_prob, b.log_prob, rtol=1e-13, atol=1e-13)


def in_calls(case, cuts, **options):
    """A run in several calls, each of which goes on from the one before; cuts are their first positions."""
    run, pieces = {}, []
    for start, stop in zip(cuts, [*cuts[1:], case["variables"]], strict=True):
        pieces.append(sample(case, **{**options, **run}, start=start, stop=stop))
        last = pieces[-1]
        run = {"state": last.state, "cell_state": last.cell_state, "last": last.last, "finished": last.finished}
    values, log_prob = torch.cat([piece.values for piece in pieces], 1), sum(piece.log_prob for piece in pieces)
    return pieces[-1]._replace(values=values, log_prob=log_prob)
