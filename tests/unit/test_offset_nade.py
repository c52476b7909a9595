"""OffsetNADE and its op: against the reference and the definition, on grids of every kind, with every head."""

import concurrent.futures
import contextlib
import math

import pytest
import torch
from conftest import available_isas, isa
from grids import pairs
from model_cases import bit_for_bit, make_context
from offset_nade_cases import EVENTS, MODEL_HEADS, draw_events, make
from offset_nade_op_cases import HEADS, op_case

from ar_fast import _fallback, _library, functional, heads, models, orderings, reference

FIXED_SEED = 0


def sample(case, **options):
    return functional.offset_nade_sample(**{**case, **options})


def by_reference(case, **options):
    arguments = {
        "given": None, "known": None, "first_index": 0, "start": 0, "stop": math.prod(case["grid"]), "temperature": 1.0,
        **case, **options,
    }  # fmt: skip

    def upcast(value):
        if isinstance(value, list):
            return [upcast(one) for one in value]
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return reference.offset_nade_sample(**{name: upcast(value) for name, value in arguments.items()})


def assert_equal_draws(got, want, dtype, discrete=True):
    """Draws may differ only where rounding decides, which these seeds do not hit; the rest agrees within rounding."""
    assert got[1].dtype == torch.float64
    assert got[0].dtype == got[2].dtype == reference.compute_dtype(dtype)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-4}
    if discrete:
        torch.testing.assert_close(got[0].double(), want[0], rtol=0, atol=1e-6)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, **tolerance)


SHAPES = [
    ((1, 1, 1), (0, 1)),  # nothing to see
    ((1, 11, 1), (0, 3)),  # a sequence
    ((1, 4, 1), (0, 9)),  # a window past its beginning
    ((5, 7, 1), (2, 1)),
    ((4, 3, 1), (3, 5)),  # wider than the grid
    ((4, 6, 1), (0, 2)),  # rows that know nothing of each other
    ((4, 6, 1), (2, 0)),  # nor columns
    ((3, 4, 3), (1, 2)),  # three channels
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grid, window", SHAPES, ids=str)
def test_draws_equal_the_reference(device, grid, window, dtype):
    case = op_case(5, grid, window, layers=(23, 9), dtype=dtype, device=device)
    assert_equal_draws(sample(case), by_reference(case), dtype)


@pytest.mark.parametrize(
    "hidden, layers", [(1, ()), (7, ()), (64, ()), (111, ()), (300, ()), (1, (1,)), (300, (7, 111)), (64, (300, 64, 1))]
)
def test_every_number_of_hidden_units(device, hidden, layers):
    case = op_case(3, (3, 4, 2), (1, 1), hidden, layers, device=device)
    assert_equal_draws(sample(case), by_reference(case), torch.float32)


@pytest.mark.parametrize("hidden, layers", [(6000, ()), (9, (6000, 9))])
def test_more_hidden_units_than_shared_memory_holds(device, hidden, layers):
    case = op_case(2, (2, 3, 1), (1, 1), hidden, layers, device=device)
    assert_equal_draws(sample(case), by_reference(case), torch.float32)


def test_as_many_layers_as_there_may_be(device):
    case = op_case(2, (2, 3, 1), (1, 1), 5, (5,) * 16, device=device, activation="tanh")
    assert_equal_draws(sample(case), by_reference(case), torch.float32)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("shared_output", [True, False])
def test_every_activation_and_either_output(device, activation, shared_output):
    options = {"activation": activation, "shared_output": shared_output, "ordered": True, "device": device}
    case = op_case(3, (3, 4, 2), layers=(11,), **options)
    assert_equal_draws(sample(case), by_reference(case), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_every_head(device, head, dtype):
    case = op_case(4, (3, 4, 2), (1, 1), head=head, dtype=dtype, device=device, ordered=True, row_bias=True)
    for options in ({}, {"temperature": 0.6, "first_index": 2**40 + 7}):
        assert_equal_draws(sample(case, **options), by_reference(case, **options), dtype, head != "gaussian_mixture")


@pytest.mark.parametrize("name", available_isas())
@pytest.mark.parametrize("head", HEADS)
def test_every_instruction_set(name, head):
    for layers in ((), (70, 9)):
        case = op_case(4, (4, 5, 3), (2, 1), 77, layers, head=head)
        with isa(name):
            assert_equal_draws(sample(case), by_reference(case), torch.float32, head != "gaussian_mixture")


@pytest.mark.parametrize("head", HEADS)
def test_known_variables_and_cuts_anywhere(device, head):
    case = op_case(5, (3, 4, 2), (1, 2), head=head, device=device, ordered=True)
    given = sample(case, seed=1)[0]
    by_variable = torch.empty_like(given)
    by_variable[:, case["order"]] = given
    options = {"given": by_variable, "known": torch.rand(5, 24, device=device) < 0.4}
    whole = sample(case, **options)
    assert_equal_draws(whole, by_reference(case, **options), torch.float32, head != "gaussian_mixture")
    known = options["known"][:, case["order"]]
    assert torch.equal(whole[0][known], given[known])
    pieces, state = [], case["state"]
    for start, stop in ((0, 5), (5, 5), (5, 6), (6, 24)):
        pieces.append(sample(case, **options, state=state, start=start, stop=stop))
        state = pieces[-1][2]
    assert torch.equal(torch.cat([piece[0] for piece in pieces], 1), whole[0]) and torch.equal(state, whole[2])
    torch.testing.assert_close(sum(piece[1] for piece in pieces), whole[1], rtol=1e-13, atol=1e-13)
    for i in range(5):
        own = {name: value[i : i + 1] for name, value in options.items()}
        alone = sample(case, **own, state=case["state"][i : i + 1], first_index=i)
        for part, of_whole in zip(alone, whole, strict=True):
            assert torch.equal(part[0], of_whole[i])


def test_threads_do_not_matter():
    case = op_case(7, (6, 7, 1))
    results = []
    for count in (1, 2, 5):
        with threads_of_torch(count):
            results.append(sample(case))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@contextlib.contextmanager
def threads_of_torch(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_wavefronts_change_no_bit(case, counts=(2,), **options):
    pixels = sample(case, algorithm="pixels", **options)
    for count in counts:
        with threads_of_torch(count):
            wavefront = sample(case, algorithm="wavefront", **options)
        assert all(torch.equal(a, b) for a, b in zip(pixels, wavefront, strict=True))


WAVEFRONTS = [
    ((9, 13, 1), (2, 1)),  # bands of several rows, and a last one of fewer
    ((8, 31, 2), (1, 2)),
    ((1, 11, 1), (0, 3)),  # a sequence has no second row
    ((6, 2, 3), (3, 5)),  # narrower than the window
    ((7, 9, 1), (0, 2)),  # rows that know nothing of each other
    ((7, 9, 1), (2, 0)),  # no row is behind the one above
    ((12, 1, 2), (1, 1)),
]


@pytest.mark.parametrize("case, head, name", pairs(WAVEFRONTS, HEADS, available_isas()), ids=str)
def test_wavefronts_change_no_bit(case, head, name):
    grid, window = case
    with isa(name):
        for batch, hidden, layers, options in (
            (1, 65, (33, 70), {"activation": "relu"}),
            (3, 19, (), {"ordered": True, "row_bias": True, "shared_output": False}),
        ):
            assert_wavefronts_change_no_bit(op_case(batch, grid, window, hidden, layers, head=head, **options))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16])
def test_wavefronts_of_any_number_of_threads(count):
    for batch, grid, window in ((1, (60, 90, 1), (2, 3)), (2, (60, 40, 1), (2, 3)), (1, (40, 50, 2), (0, 2))):
        assert_wavefronts_change_no_bit(op_case(batch, grid, window, 64, (32,)), [count])


def test_small_images_do_not_wake_threads():
    import ar_fast

    for size, threads in (((8, 9, 1), 1), ((128, 128, 1), 2), ((128, 9, 1), 1)):
        with threads_of_torch(2):
            (line,) = ar_fast.explain("offset_nade_sample", **op_case(1, size, (4, 4), 64), algorithm="wavefront")
        assert f"along wavefronts on {threads} threads" in line


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", available_isas())
def test_wavefronts_of_every_dtype(name, dtype):
    with isa(name):
        assert_wavefronts_change_no_bit(op_case(2, (9, 23, 2), (2, 1), 70, (9,), dtype=dtype))


@pytest.mark.parametrize("start, stop", [(0, 1), (5, 5), (1, 399), (40, 400), (77, 210), (119, 121), (137, 140)])
def test_wavefronts_between_any_positions(start, stop):
    # 10 rows of 40 values: a call may begin and end within a row, and within a pixel.
    case = op_case(2, (10, 20, 2), (2, 1), 19, (8,), ordered=True, head="logistic_mixture")
    known = {"given": torch.randint(7, (2, 400)) / 3.0 - 1, "known": torch.rand(2, 400) < 0.4}
    for options in ({}, known):
        state = sample(case, algorithm="pixels", stop=start, **options)[2]
        assert_wavefronts_change_no_bit(case, state=state, start=start, stop=stop, **options)
    everything = known | {"known": torch.ones(2, 400, dtype=torch.bool)}
    assert_wavefronts_change_no_bit(case, **everything)


def test_wavefronts_within_a_thread_pool():
    # Threads of Python draw at the same time, each with torch's threads of its own or none.
    case = op_case(2, (60, 40, 1), (2, 3), 32, (16,))
    want = sample(case, algorithm="pixels")
    with threads_of_torch(2), concurrent.futures.ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: sample(case, algorithm="wavefront"), range(8)):
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_an_impossible_category_is_nan_along_wavefronts_too():
    # A known value that is no category makes NaN of everything that sees it, in either order of the pixels.
    case = op_case(1, (8, 30, 1), (2, 1), 19, (8,), head="categorical")
    given = torch.randint(3, (1, 240)).float()
    given[0, 100] = 7.0
    options = {"given": given, "known": torch.arange(240)[None] == 100}
    pixels, wavefront = (sample(case, algorithm=name, **options) for name in ("pixels", "wavefront"))
    assert pixels[1].isnan().all() and wavefront[1].isnan().all()
    assert torch.equal(pixels[0], wavefront[0])


def test_inputs_are_not_modified_and_may_be_strided(device):
    case = op_case(3, layers=(7,), device=device)
    before = {name: value.clone() for name, value in case.items() if isinstance(value, torch.Tensor)}
    layer = case["weights"][0].clone()
    want = sample(case)
    assert all(torch.equal(case[name], value) for name, value in before.items())
    assert torch.equal(case["weights"][0], layer)

    def stride(value):
        return value.repeat_interleave(2, -1)[..., ::2]

    strided = {name: stride(value) for name, value in before.items() if value.is_floating_point()}
    strided |= {name: [stride(value) for value in case[name]] for name in ("weights", "biases")}
    assert all(torch.equal(a, b) for a, b in zip(sample(case, **strided), want, strict=True))


@pytest.mark.heavy
def test_opcheck_and_compile(device, ops):
    case = op_case(2, (3, 4, 2), layers=(8,), device=device)
    names = ("state", "in_weight", "in_bias", "weights", "biases", "out_weight", "out_bias")
    settings = ([3, 4, 2], [2, 1], True, "sigmoid", "bernoulli", 0, 3, 0, 1, 20, 1.0)
    torch.library.opcheck(
        ops.offset_nade_sample.default, (*(case[name] for name in names), None, None, None, *settings)
    )
    torch.compiler.reset()
    compiled = torch.compile(lambda state: sample(case, state=state), fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(case["state"]), sample(case), strict=True):
        assert torch.equal(a, b)


def test_explain_says_what_runs():
    import ar_fast

    for options, way in (
        ({"algorithm": "pixels"}, "one by one"),
        ({"algorithm": "wavefront"}, "along wavefronts"),
        ({"stop": 5}, "one by one"),  # a row has no other beside it
    ):
        (line,) = ar_fast.explain("offset_nade_sample", **op_case(2, layers=(30,)), **options)
        assert line.startswith("offset_nade_sample on the CPU: ") and "7 taps of 1 channels" in line
        assert way in line and "2 hidden layers of at most 30" in line
    wide = op_case(1, (64, 256, 1), (1, 1))
    assert "along wavefronts" in ar_fast.explain("offset_nade_sample", **wide)[0]


@pytest.mark.parametrize(
    "message, options",
    {
        "grid must be \\(rows, columns, channels\\), all positive, got \\[4, 0, 1\\]": {"grid": (4, 0, 1)},
        "window must be .* not both 0, got \\[0, 0\\]": {"window": (0, 0)},
        "in_weight must have": {"in_weight": torch.zeros(10, 19)},
        "out_weight must have": {"out_weight": torch.zeros(1, 18)},
        "out_weight must have K rows per variable": {"shared_output": False},
        "out_bias must have": {"out_bias": torch.zeros(2)},
        "in_bias must have": {"in_bias": torch.zeros(3, 19)},
        "in_bias must .*float32": {"in_bias": torch.zeros(19, dtype=torch.float64)},
        "state must have": {"state": torch.zeros(4, 10)},
        "state must be .*float32": {"state": torch.zeros(4, 11, dtype=torch.float64)},
        "order must have": {"order": torch.arange(19)},
        "given and known come together": {"given": torch.zeros(4, 20)},
        "positions must satisfy": {"stop": 21},
        "temperature must be positive": {"temperature": 0.0},
        "activation must be": {"activation": "gelu"},
        "head must be": {"head": "poisson"},
        "out_weight must have 3 K rows per variable": {"head": "gaussian_mixture"},
        "levels must be at least 2": {"head": "logistic_mixture"},
        "weights must hold at most 16 layers, got 17": {"weights": [torch.zeros(19, 19)] * 17},
        "biases must hold one tensor per layer of weights, 1, got 0": {"weights": [torch.zeros(3, 19)]},
        "weights\\[0\\] must have 19 columns": {"weights": [torch.zeros(3, 18)], "biases": [torch.zeros(3)]},
        "biases\\[0\\] must have 3 entries": {"weights": [torch.zeros(3, 19)], "biases": [torch.zeros(2)]},
        "weights\\[0\\] must have the dtype": {
            "weights": [torch.zeros(3, 19, dtype=torch.float64)],
            "biases": [torch.zeros(3)],
        },
        "algorithm must be one of auto, pixels, wavefront, got 'fast'": {"algorithm": "fast"},
    }.items(),
)
def test_bad_input_of_the_op(device, message, options):
    def there(value):
        if isinstance(value, list):
            return [there(one) for one in value]
        return value.to(device) if isinstance(value, torch.Tensor) else value

    options = {name: there(value) for name, value in options.items()}
    with pytest.raises(RuntimeError, match=f"offset_nade_sample: {message}"):
        sample(op_case(device=device), **options)


def test_a_gpu_draws_in_raster_order(device, emulation):
    if device.type == "cpu" and not emulation:
        pytest.skip("the CPU has wavefronts")
    with pytest.raises(RuntimeError, match="algorithm must be auto or pixels on CUDA, got 'wavefront'"):
        sample(op_case(device=device), algorithm="wavefront")


def test_bad_values_on_the_cpu():
    case = op_case(2, (2, 2, 1), head="categorical")
    with pytest.raises(RuntimeError, match="offset_nade_sample: order must be a permutation"):
        sample(case, order=torch.zeros(4, dtype=torch.long))


# ---------------------------------------------------------------- the model


def parameters_by_definition(model, x, context=None):
    """(B, D, K) by a loop over the variables and what each sees."""
    order = torch.arange(model.variables) if model.order is None else model.order.cpu()
    values = model.head.encode(x, model.dtype).flatten(1)[:, order]
    weight = model.in_weight.unflatten(0, (-1, model.counts if isinstance(model.head, heads.Categorical) else 1))
    parameters = [None] * model.variables
    for p, i in enumerate(order.tolist()):
        state = model.in_bias.expand(len(x), -1)
        if context is not None:
            state = state + context @ model.context_weight.T
        for position, index in reference.offset_inputs(p, model.grid, model.window):
            v = values[:, position]
            state = state + (
                weight[index, v] if isinstance(model.head, heads.Categorical) else v[:, None] * weight[index]
            )
        first = (p % model.grid[2] if model.shared_output else i) * model.counts
        rows = slice(first, first + model.counts)
        hidden = reference.ACTIVATIONS[model.activation](state)
        for layer in model.layers:
            hidden = reference.ACTIVATIONS[model.activation](layer(hidden))
        parameters[i] = hidden @ model.out_weight[rows].T + model.out_bias[rows]
    return torch.stack(parameters, 1)


@pytest.mark.heavy
@pytest.mark.parametrize("shared_output", [True, False])
@pytest.mark.parametrize("event_shape, window", EVENTS, ids=str)
@pytest.mark.parametrize("name", MODEL_HEADS)
def test_the_convolution_is_the_definition(device, name, event_shape, window, shared_output):
    for order, hidden in ((None, 9), (orderings.random(event_shape, seed=2), (9, 5, 6))):
        options = {"head": MODEL_HEADS[name], "order": order, "shared_output": shared_output, "device": device}
        model = make(event_shape, window, context_features=2, hidden_features=hidden, **options)
        x, context = draw_events(model, 5), make_context(2, 5, device=device)
        want = parameters_by_definition(model, x, context)
        torch.testing.assert_close(model(x, context), want)
        terms = model.head.log_prob(want, x.flatten(1))
        torch.testing.assert_close(model.log_prob(x, context, per_variable=True).flatten(1), terms)
        torch.testing.assert_close(model.log_prob(x, context), terms.sum(1))
        parameters = list(model.parameters())
        for a, b in zip(
            torch.autograd.grad(model.log_prob(x, context).sum(), parameters),
            torch.autograd.grad(terms.sum(), parameters),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.heavy
@torch.no_grad()
@pytest.mark.parametrize("event_shape, window", EVENTS, ids=str)
@pytest.mark.parametrize("name", MODEL_HEADS)
def test_log_prob_of_a_sample_and_steps(device, name, event_shape, window):
    options = {"hidden_features": (9, 5), "context_features": 2, "device": device}
    model = make(event_shape, window, head=MODEL_HEADS[name], **options)
    context = make_context(2, 6, device=device)
    samples, log_prob = model.sample((), context, seed=5, return_log_prob=True)
    torch.testing.assert_close(model.log_prob(samples, context), log_prob)
    expected, state = model(samples, context), model.begin(6, context)
    while state.variable is not None:
        torch.testing.assert_close(state.parameters, expected[:, state.variable])
        state = model.next(state, samples.flatten(1)[:, state.variable])


@pytest.mark.heavy
@bit_for_bit
@torch.no_grad()
@pytest.mark.parametrize("event_shape, window", EVENTS, ids=str)
@pytest.mark.parametrize("name", MODEL_HEADS)
def test_samples_do_not_depend_on_how_many_are_drawn(device, name, event_shape, window):
    options = {"hidden_features": (9, 5), "dtype": torch.float32, "device": device}
    model = make(event_shape, window, head=MODEL_HEADS[name], **options)
    whole = model.sample(100, seed=5, return_log_prob=True)
    first = model.sample(40, seed=5, return_log_prob=True)
    rest = model.sample(60, seed=5, first_index=40, return_log_prob=True)
    for of_whole, of_first, of_rest in zip(whole, first, rest, strict=True):
        assert torch.equal(of_whole, torch.cat([of_first, of_rest]))
    sampling = model.sampling(100, seed=5)
    while not sampling.done:
        sampling.advance(5)
    assert torch.equal(sampling.samples, whole[0])


@pytest.mark.parametrize("name", available_isas())
@pytest.mark.parametrize("layers", [(1,), (3,), (19,), (64,), (70, 5), (5, 70)], ids=str)
@pytest.mark.parametrize("head", [heads.Bernoulli(), heads.GaussianMixture(2)], ids=str)
@pytest.mark.parametrize("event_shape", [(9,), (6, 7)], ids=str)
def test_infinite_known_values(name, layers, head, event_shape):
    """They saturate units; those that fill the last vector have weights of zero, whose product must not be seen."""
    options = {"head": head, "activation": "tanh", "validate_args": False, "dtype": torch.float64}
    model = models.OffsetNADE(event_shape, list(layers), 2, **options)
    given = torch.zeros(3, *event_shape, dtype=torch.float64)
    known = torch.arange(math.prod(event_shape)).reshape(event_shape) < 4
    given[0].view(-1)[1], given[2].view(-1)[3] = math.inf, -math.inf
    draw = {"given": given, "known": known, "seed": 3, "return_log_prob": True}
    with isa(name):
        got = model.sample(3, **draw)
    with _library.replaced(_fallback.REFERENCES):
        want = model.sample(3, **draw)
    assert want[1].isfinite().all()
    for own, other in zip(got, want, strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "event_shape, window, larger", [((7,), 3, (20,)), ((3, 4), 2, (6, 5)), ((3, 2, 3), 1, (3, 4, 5))]
)
def test_another_size_shares_the_parameters(device, event_shape, window, larger):
    """Where the window lies within both sizes the conditionals are the same."""
    model = make(event_shape, window, device=device)
    other = model.resized(larger)
    assert other.in_weight is model.in_weight and model.event_shape == event_shape
    x = torch.randint(0, 2, (2, *larger), device=device)
    part = x[tuple(slice(None, size) for size in (2, *event_shape))]
    want, got = model.log_prob(part, per_variable=True), other.log_prob(x, per_variable=True)
    # Columns that see past the smaller event's right edge see more in the larger one.
    columns = event_shape[-1] - (model.window[1] if model.window[0] else 0)
    columns = slice(None, max(columns, 1))
    torch.testing.assert_close(
        got[tuple(slice(None, size) for size in (2, *event_shape))][..., columns], want[..., columns]
    )
    samples, log_prob = other.sample(3, seed=1, return_log_prob=True)
    assert samples.shape == (3, *larger)
    torch.testing.assert_close(log_prob, other.log_prob(samples))
    with pytest.raises(ValueError, match="event_shape must have the dimensions and channels of"):
        model.resized((*larger, 1) if len(larger) < 3 else (2, 4, 5))


@pytest.mark.parametrize("event_shape, larger", [((7,), (4,)), ((3, 4), (6, 5)), ((2, 2, 3), (2, 4, 5))])
@pytest.mark.parametrize("name", MODEL_HEADS)
def test_any_head_has_another_size(name, event_shape, larger):
    """Whatever a model keeps for each variable has the new size; the model itself keeps the old one."""
    model = make(event_shape, 1, head=MODEL_HEADS[name], dtype=torch.float64)
    real = model.standardization is not None
    if real:
        channels = torch.randn(model.grid[2], *[1] * (len(event_shape) - 1), dtype=torch.float64)
        mean = channels.expand(event_shape) if len(event_shape) == 3 else channels[0].expand(event_shape)
        model.standardize(mean=mean, std=mean.exp())
    before = draw_events(model, 3)
    want, other = model.log_prob(before), model.resized(larger)
    if real:
        mean = channels.expand(larger) if len(larger) == 3 else channels[0].expand(larger)
        fresh = make(larger, 1, head=MODEL_HEADS[name], dtype=torch.float64).standardize(mean=mean, std=mean.exp())
    else:
        fresh = make(larger, 1, head=MODEL_HEADS[name], dtype=torch.float64)
    with torch.no_grad():
        for own, parameter in zip(fresh.parameters(), model.parameters(), strict=True):
            own.copy_(parameter)
    samples, log_prob = other.sample(3, seed=1, return_log_prob=True)
    again, expected = fresh.sample(3, seed=1, return_log_prob=True)
    assert torch.equal(samples, again) and torch.equal(log_prob, expected)
    torch.testing.assert_close(log_prob, other.log_prob(samples))
    assert other.state_dict().keys() == fresh.state_dict().keys()
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in other.state_dict().items())
    assert torch.equal(model.log_prob(before), want)
    if real:
        other.standardize(mean=torch.ones(larger), std=torch.ones(larger))
        assert torch.equal(model.log_prob(before), want)


def test_what_cannot_be_resized():
    model = make((2, 2), 1, head=heads.GaussianMixture(2)).standardize(torch.randn(20, 2, 2))
    with pytest.raises(ValueError, match="a model with a standardization for each variable cannot be resized"):
        model.resized((4, 4))
    with torch.device("meta"):
        assert make((2, 2), 1, head=heads.GaussianMixture(2)).resized((4, 4)).standardization.shift.shape == (16,)
    for options, reason in (({"shared_output": False}, "output weights"), ({"order": [3, 2, 1, 0]}, "an order")):
        with pytest.raises(ValueError, match=f"a model with {reason}.* cannot be resized"):
            make((2, 2), 1, **options).resized((4, 4))


def test_the_number_of_parameters_does_not_depend_on_the_event():
    model = models.OffsetNADE((3, 512, 512), 16, 2, head=heads.LogisticMixture(5))
    taps = 2 * 5 + 2
    assert sum(p.numel() for p in model.parameters()) == (taps * 3 + 2) * 16 + 16 + 3 * 15 * 17


@pytest.mark.parametrize("shared_output", [True, False])
@pytest.mark.parametrize("name", MODEL_HEADS)
def test_save_and_load(tmp_path, name, shared_output):
    model = make((3, 2, 3), (2, 1), head=MODEL_HEADS[name], shared_output=shared_output, context_features=2)
    model.save(tmp_path)
    loaded = models.load(tmp_path)
    x, context = draw_events(model, 3), make_context(2, 3)
    assert repr(loaded) == repr(model) and torch.equal(loaded.log_prob(x, context), model.log_prob(x, context))
    if shared_output:
        assert loaded.resized((3, 5, 5)).event_shape == (3, 5, 5)


def test_training_learns_a_texture():
    """Stripes: a pixel is the one two to its left, except for one in twenty."""
    torch.manual_seed(0)
    x = (torch.rand(50, 16, 8, 2) < 0.05).cumsum(2).flatten(2) % 2
    model = models.OffsetNADE((16, 16), 16, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (-model.log_prob(x).mean() / 256).backward()
        optimizer.step()
    truth = -(0.05 * math.log(0.05) + 0.95 * math.log(0.95))
    assert -model.log_prob(x).mean().item() / 256 < truth + 0.05 < 0.3
    wide = model.resized((20, 200)).sample(20, seed=0)
    assert (wide[..., 2:] == wide[..., :-2]).float().mean() > 0.9


@pytest.mark.parametrize(
    "message, make_error",
    [
        ("event_shape must be \\(D\\), \\(H, W\\) or \\(C, H, W\\)", lambda: models.OffsetNADE((2, 2, 2, 2), 4, 1)),
        ("hidden_features must be one or more positive integers, got 0", lambda: models.OffsetNADE(4, 0, 1)),
        (
            "hidden_features must be one or more positive integers, got \\[\\]",
            lambda: models.OffsetNADE(4, [], 1),
        ),
        ("window must be a positive integer, got 0", lambda: models.OffsetNADE(4, 3, 0)),
        ("window must be a positive integer, got \\(1, 2\\)", lambda: models.OffsetNADE(4, 3, (1, 2))),
        ("window must be a positive integer or \\(up, side\\)", lambda: models.OffsetNADE((4, 4), 3, (0, 0))),
        ("activation must be one of sigmoid, tanh, relu", lambda: models.OffsetNADE(4, 3, 1, "elu")),
        (
            "head must have as many parameters for every variable",
            lambda: models.OffsetNADE(2, 3, 1, head=heads.Categorical([2, 3])),
        ),
    ],
)
def test_bad_arguments(message, make_error):
    with pytest.raises(ValueError, match=f"OffsetNADE: {message}"):
        make_error()


@pytest.mark.parametrize("window", [(1, 0), (0, 2), (2, 1)])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 3, 4)])
def test_gradients_with_one_hidden_unit(shape, window):
    """torch has a convolution for few channels that needs its weights in a row."""
    model = models.OffsetNADE(shape, 1, window, head=heads.Categorical(2), dtype=torch.float64)
    model.log_prob(torch.zeros(2, *shape, dtype=torch.int64)).sum().backward()
    assert model.in_weight.grad.shape == model.in_weight.shape


@pytest.mark.parametrize("context_features", [0, 3])
def test_evaluation_in_blocks_of_events(context_features, monkeypatch):
    """Without gradients, a few events at a time give what all of them give together."""
    model = models.OffsetNADE((2, 5, 6), 9, (2, 2), head=heads.GaussianMixture(2), context_features=context_features)
    x = torch.randn(11, 2, 5, 6)
    context = torch.randn(11, context_features) if context_features else None
    want = model.log_prob(x, context).detach()
    calls = []
    evaluate = model._parameters_of_events
    monkeypatch.setattr(model, "_parameters_of_events", lambda *own: calls.append(len(own[0])) or evaluate(*own))
    for bytes_together, blocks in [(2**30, [11]), (4 * 30 * 9 * 4, [4, 4, 3]), (1, [1] * 11)]:
        monkeypatch.setattr(models.offset_nade, "_CACHE_BYTES", bytes_together)
        calls.clear()
        with torch.no_grad():
            torch.testing.assert_close(model.log_prob(x, context), want, rtol=1e-5, atol=1e-4)
        assert calls == blocks
    calls.clear()
    model.log_prob(x, context).sum().backward()
    assert calls == [11]
