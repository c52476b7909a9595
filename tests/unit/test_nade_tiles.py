"""The CUDA kernels of NADE at sizes that cross each of their tiles: under the emulation, in every order of threads, and
on a GPU."""

import contextlib
import ctypes

import emulated
import on_cuda
import pytest
import torch

from ar_fast import reference

# Hidden units: one, odd, around a warp (32), several strips of 128-bit vectors (64, 128, 256 units), aligned and not,
# and more than one warp per sample. Variables: around the backward's tile (16); more than 32 in a chunk of the forward.
HIDDEN = [1, 7, 19, 31, 32, 33, 111, 500, 989]
VARIABLES = [1, 7, 19, 65, 290]
STORAGE = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


@pytest.fixture
def ops(fiber_order):
    if fiber_order == on_cuda.ORDER:
        return on_cuda.Ops()
    emulated.load()
    return torch.ops.ar_fast_emulated


@pytest.fixture(params=[*emulated.ORDERS, *on_cuda.available()], autouse=True)
def fiber_order(request):
    """Uninitialised outputs and scratch start as NaN, so that an element that is never written shows."""
    torch.use_deterministic_algorithms(True)
    with contextlib.nullcontext() if request.param == on_cuda.ORDER else emulated.fiber_order(request.param):
        yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def set_budget(fiber_order):
    """Bytes of scratch that a launch may take; what ships has a constant in its place."""
    if fiber_order == on_cuda.ORDER:
        return lambda budget: None
    return lambda budget: emulated.load().ar_fast_test_set_scratch_budget(ctypes.c_int64(budget))


@pytest.fixture
def set_enough_warps(fiber_order):
    """Warps that have to be left for a warp of nade_sums to have many rows."""
    if fiber_order == on_cuda.ORDER:
        return lambda warps: None
    return lambda warps: emulated.load().ar_fast_test_set_enough_warps(ctypes.c_int64(warps))


class Model:
    """Random weights; `rows_in` and `rows_out` give the weight rows of each variable."""

    def __init__(self, variables, hidden, dtype, rows_in=1, rows_out=1, scaled=False, biases=0):
        generator = torch.Generator().manual_seed(variables * 1000 + hidden)

        def normal(*shape, scale=1.0):
            return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

        def offsets(rows):
            return None if isinstance(rows, int) else torch.tensor([0, *rows]).cumsum(0)

        total_in = variables * rows_in if isinstance(rows_in, int) else sum(rows_in)
        total_out = variables * rows_out if isinstance(rows_out, int) else sum(rows_out)
        self.in_weight, self.out_weight = normal(total_in, hidden), normal(total_out, hidden, scale=hidden**-0.5)
        self.in_bias, self.out_bias = normal(biases, hidden) if biases else normal(hidden), normal(total_out)
        self.order = torch.randperm(variables, generator=generator)
        self.in_offsets, self.out_offsets = offsets(rows_in), offsets(rows_out)
        self.scale = normal(variables).abs() + 0.5 if scaled else None

    def by_reference(self, x, activation):
        """The parameters and the leaves they depend on, in float64, one variable after another."""
        leaf = {
            name: value.double().requires_grad_()
            for name, value in vars(self).items()
            if value is not None and value.is_floating_point()
        }
        variables = len(self.order)
        in_offsets, out_offsets = (
            torch.arange(variables + 1) * (len(weight) // variables) if offsets is None else offsets
            for weight, offsets in ((self.in_weight, self.in_offsets), (self.out_weight, self.out_offsets))
        )
        gathers = self.in_offsets is not None or len(self.in_weight) != variables
        if not gathers:
            leaf["x"] = x = x.double().requires_grad_()
        state = leaf["in_bias"].expand(len(x), -1)
        parameters = torch.zeros(len(x), len(self.out_weight), dtype=torch.float64)
        for i in self.order.tolist():
            scale = leaf["scale"][i] if "scale" in leaf else 1.0
            rows = slice(out_offsets[i], out_offsets[i + 1])
            h = ACTIVATIONS[activation](scale * state)
            parameters = parameters.index_copy(
                1, torch.arange(len(self.out_weight))[rows], h @ leaf["out_weight"][rows].T + leaf["out_bias"][rows]
            )
            step = leaf["in_weight"][in_offsets[i] + x[:, i]] if gathers else x[:, i : i + 1] * leaf["in_weight"][i]
            state = state + step
        return parameters, leaf


def compare(ops, model, x, activation):
    dtype = model.in_weight.dtype
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    expected, leaf = model.by_reference(x, activation)
    arguments = (model.order, model.in_offsets, model.out_offsets, model.scale, activation)
    actual = ops.nade(x, model.in_weight, model.in_bias, model.out_weight, model.out_bias, *arguments)
    assert actual.dtype == compute
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if compute == torch.float64 else {"rtol": 2e-5, "atol": 2e-5}
    torch.testing.assert_close(actual.double(), expected.detach(), **tolerance)

    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5), dtype=compute)
    names = ["x", "in_weight", "in_bias", "out_weight", "scale"]
    wanted = [name for name in names if name in leaf]
    leaves = [leaf[name] for name in wanted]
    grads = dict(zip(wanted, torch.autograd.grad(expected, leaves, grad.double(), materialize_grads=True), strict=True))
    got = ops.nade_backward(
        grad, x, model.in_weight, model.in_bias, model.out_weight, *arguments, "x" in leaf, "scale" in leaf, "auto"
    )
    for name, actual in zip(names, got, strict=True):
        if name not in grads:
            assert actual.numel() == 0
            continue
        # Stored in 16 bits, a gradient is rounded once, at the end.
        rounding = torch.finfo(actual.dtype).eps if actual.dtype in (torch.bfloat16, torch.float16) else 0
        size = grads[name].abs().max().item() if grads[name].numel() else 0.0
        bounds = {"rtol": rounding + tolerance["rtol"], "atol": (tolerance["atol"] + rounding * 1e-2) * (1 + size)}
        torch.testing.assert_close(actual.double(), grads[name], msg=lambda text, at=name: f"{at}: {text}", **bounds)


def inputs(batch, variables, dtype, binary=True):
    generator = torch.Generator().manual_seed(batch)
    if binary:
        return torch.randint(0, 2, (batch, variables), generator=generator).to(dtype)
    return torch.randn(batch, variables, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_hidden_units(ops, hidden):
    for dtype in STORAGE:
        compare(ops, Model(19, hidden, dtype), inputs(5, 19, dtype), "sigmoid")


@pytest.mark.parametrize("variables", VARIABLES)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_variables_and_activations(ops, variables, activation):
    compare(ops, Model(variables, 33, torch.float32), inputs(5, variables, torch.float32, binary=False), activation)


@pytest.mark.parametrize("batch", [0, 1, 9])
def test_batch(ops, batch):
    compare(ops, Model(19, 33, torch.float32, biases=batch), inputs(batch, 19, torch.float32), "tanh")
    compare(ops, Model(7, 20, torch.float64), inputs(batch, 7, torch.float64), "sigmoid")


@pytest.mark.parametrize("hidden", [19, 160])
def test_activation_scale(ops, hidden):
    compare(ops, Model(19, hidden, torch.float32, scaled=True), inputs(5, 19, torch.float32), "sigmoid")
    compare(ops, Model(5, hidden, torch.float32, rows_out=11, scaled=True), inputs(3, 5, torch.float32), "tanh")


@pytest.mark.parametrize("dtype", STORAGE)
def test_categories(ops, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 9, (4, 5), generator=generator)
    compare(ops, Model(5, 36, dtype, rows_in=9, rows_out=9), x, "sigmoid")
    rows = [1, 9, 2, 17, 3]
    x = torch.stack([torch.randint(0, n, (4,), generator=generator) for n in rows], 1)
    compare(ops, Model(5, 36, dtype, rows_in=rows, rows_out=rows[::-1]), x, "relu")


@pytest.mark.parametrize(("variables", "rows_out", "biases"), [(65, 1, 0), (65, 1, 70), (7, 9, 0), (7, 9, 70)])
def test_results_do_not_depend_on_how_scratch_is_cut(ops, set_budget, variables, rows_out, biases):
    """With no budget, 64 rows at a time forward and sqrt(tiles) tiles at a time backward."""
    model = Model(variables, 20, torch.float32, rows_out=rows_out, biases=biases)
    x = inputs(70, variables, torch.float32)
    weights = (model.in_weight, model.in_bias, model.out_weight)
    arguments = (model.order, None, None, None, "sigmoid")
    grad = torch.randn(70, len(model.out_weight))
    results = []
    for budget in (0, 256 << 20):
        set_budget(budget)
        forward = ops.nade(x, *weights, model.out_bias, *arguments)
        results.append((forward, *ops.nade_backward(grad, x, *weights, *arguments, True, False, "auto")))
    for cut, whole in zip(*results, strict=True):
        assert torch.equal(cut, whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_rows_split_over_blocks(ops, dtype, activation):
    """Few tiles and many rows: the backward's blocks share out the rows, and their sums are merged."""
    compare(ops, Model(19, 37, dtype), inputs(150, 19, dtype, binary=activation == "sigmoid"), activation)


@pytest.mark.parametrize(("variables", "rows_out"), [(130, 1), (9, 5)])
def test_a_row_does_not_depend_on_its_batch(ops, variables, rows_out):
    model, x = Model(variables, 133, torch.float32, rows_out=rows_out), inputs(21, variables, torch.float32)
    arguments = (model.in_weight, model.in_bias, model.out_weight, model.out_bias, model.order, None, None, None)
    together = ops.nade(x, *arguments, "sigmoid")
    for rows in (slice(0, 1), slice(8, 17), slice(20, 21)):
        assert torch.equal(ops.nade(x[rows].contiguous(), *arguments, "sigmoid"), together[rows])


@pytest.mark.parametrize("batch", [1, 16, 27])
def test_many_rows_of_a_warp(ops, set_enough_warps, batch):
    """As where there are many tiles: a warp adds up 16 rows, to the same bits as 8."""
    model, x = Model(65, 132, torch.float32), inputs(batch, 65, torch.float32, binary=False)
    weights = (model.in_weight, model.in_bias, model.out_weight)
    arguments = (model.order, None, None, None, "sigmoid")
    grad = torch.randn(batch, 65)
    results = []
    for warps in (0, 1056):
        set_enough_warps(warps)
        forward = ops.nade(x, *weights, model.out_bias, *arguments)
        results.append((forward, *ops.nade_backward(grad, x, *weights, *arguments, True, False, "auto")))
    for many, few in zip(*results, strict=True):
        assert torch.equal(many, few)


def test_bernoulli_head(ops):
    model, x = Model(300, 8, torch.float32), inputs(3, 300, torch.float32)
    logits = model.by_reference(x, "sigmoid")[0].detach()
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(x.double())
    weights = (model.in_weight, model.in_bias, model.out_weight, model.out_bias, model.order, None, None, None)
    arguments = (x, *weights, "sigmoid", "bernoulli", 0, None)
    total, kept = ops.nade_log_prob_forward(*arguments, False, True, "auto")
    torch.testing.assert_close(total.double(), expected.sum(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept.double(), logits, rtol=1e-5, atol=1e-5)
    per_variable, _ = ops.nade_log_prob_forward(*arguments, True, False, "auto")
    torch.testing.assert_close(per_variable.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [100, -100, float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_activations_at_their_limits(ops, activation, size):
    model = Model(1, 4, torch.float32)
    model.in_bias.fill_(size)
    args = (model.in_weight, model.in_bias, model.out_weight, model.out_bias)
    actual = ops.nade(torch.zeros(1, 1), *args, None, None, None, None, activation)
    h = ACTIVATIONS[activation](model.in_bias)
    torch.testing.assert_close(actual[0], model.out_weight @ h + model.out_bias, equal_nan=True)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_activations_are_accurate(ops, activation):
    """Each hidden unit read out by itself: relative error below 1e-6 down to 1e-30."""
    values = torch.cat([torch.linspace(-60, 60, 256), torch.logspace(-6, 0, 128), -torch.logspace(-6, 0, 128)])
    hidden = len(values)
    arguments = (torch.zeros(1, hidden), values, torch.eye(hidden), torch.zeros(hidden))
    actual = ops.nade(torch.zeros(1, 1), *arguments, None, None, None, None, activation)[0]
    expected = ACTIVATIONS[activation](values.double())
    assert ((actual.double() - expected).abs() / expected.abs()).nan_to_num(0).max() < 1e-6


# Parameters of a variable: one lane, a few (8 warps split the hidden units of a row), past a warp, past 8 warps of 8.
COUNTS = [1, 3, 33, 70]
HEADS = {"bernoulli": (0, 1), "categorical": (0, 1), "gaussian_mixture": (0, 3), "logistic_mixture": (9, 3)}


def head_model(head, count, hidden, dtype, variables=5, ragged=False, scaled=False):
    """A model whose variables have ``count`` categories or components, or different ones around it."""
    counts = [count + i % 3 for i in range(variables)] if ragged else [count] * variables
    each = HEADS[head][1]
    if head == "bernoulli":
        return Model(variables, hidden, dtype, scaled=scaled), counts
    gathers = head == "categorical" and (ragged or count > 1)
    if ragged:
        return Model(variables, hidden, dtype, counts if gathers else 1, [each * n for n in counts], scaled), counts
    return Model(variables, hidden, dtype, count if gathers else 1, each * count, scaled), counts


def head_values(head, counts, batch, dtype):
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(batch, len(counts), generator=generator, dtype=torch.float64)
    if head == "bernoulli":
        return (uniform < 0.5).to(dtype)
    if head == "categorical":
        return (uniform * torch.tensor(counts)).long()
    if head == "gaussian_mixture":
        return (4 * uniform - 2).to(dtype)
    return ((uniform * 9).floor() / 4 - 1).to(dtype)


def tolerance_of(dtype):
    return {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-4}


@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("head", [name for name in HEADS if name != "bernoulli"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_head_ops(ops, dtype, head, count, ragged):
    """log p and its gradients over rows of parameters, without a model."""
    levels, each = HEADS[head]
    counts = [count + i % 3 if ragged else count for i in range(5)]
    offsets = torch.tensor([0, *(each * n for n in counts)]).cumsum(0)
    generator = torch.Generator().manual_seed(count)
    parameters = torch.randn(4, int(offsets[-1]), generator=generator, dtype=torch.float64).to(dtype)
    x = head_values(head, counts, 4, dtype)
    arguments = (offsets if ragged else None, head, levels, None)
    leaves = (parameters.double().requires_grad_(), x.double().requires_grad_())
    expected = reference.head_log_prob(*leaves, *arguments)
    bounds = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(ops.head_log_prob(parameters, x, *arguments).double(), expected.detach(), **bounds)
    for shape in ((4, 5), (4,)):
        grad = torch.randn(shape, generator=generator, dtype=dtype)
        got = ops.head_log_prob_backward(grad, parameters, x, *arguments)
        whole = grad.double() if len(shape) == 2 else grad.double()[:, None].expand(4, 5)
        want = torch.autograd.grad(expected, leaves, whole, retain_graph=True, materialize_grads=True)
        for a, b in zip(got, want, strict=True):
            scale = 1 + b.abs().max().item()
            torch.testing.assert_close(a.double(), b, rtol=bounds["rtol"], atol=bounds["atol"] * scale)


def test_a_category_that_is_none_has_no_log_prob(ops):
    parameters = torch.zeros(1, 9)
    log_prob = ops.head_log_prob(parameters, torch.tensor([[0.0, 3.0, float("nan")]]), None, "categorical", 0, None)
    assert log_prob.isnan().tolist() == [[False, True, True]]


def test_extreme_parameters(ops):
    """Narrow and wide bins, log-scales below the floor, values far from every mean."""
    for head, (levels, each) in HEADS.items():
        if each == 1:
            continue
        generator = torch.Generator().manual_seed(1)
        parameters = (
            torch.randn(6, 12, generator=generator) * torch.tensor([1.0, 30.0, 100.0, 1e4, 1e10, 1e30])[:, None]
        )
        x = head_values(head, [2, 2], 6, torch.float32)
        expected = reference.head_log_prob(parameters.double(), x.double(), None, head, levels)
        got = ops.head_log_prob(parameters, x, None, head, levels, None)
        assert got.isfinite().all()
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)
        grads = ops.head_log_prob_backward(torch.ones(6), parameters, x, None, head, levels, None)
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("head", list(HEADS))
def test_fused_heads(ops, head, count, ragged):
    if head == "bernoulli" and (ragged or count > 1):
        return
    for hidden, dtype in ((19, torch.float64), (160, torch.float32)):
        model, counts = head_model(head, count, hidden, dtype, ragged=ragged)
        x = head_values(head, counts, 3, dtype)
        parameters = model.by_reference(x, "sigmoid")[0].detach()
        levels = HEADS[head][0]
        expected = reference.head_log_prob(parameters, x.double(), model.out_offsets, head, levels)
        weights = (model.in_weight, model.in_bias, model.out_weight, model.out_bias, model.order)
        arguments = (x, *weights, model.in_offsets, model.out_offsets, None, "sigmoid", head, levels, None)
        total, kept = ops.nade_log_prob_forward(*arguments, False, True, "auto")
        per_variable, _ = ops.nade_log_prob_forward(*arguments, True, False, "auto")
        bounds = tolerance_of(dtype)
        torch.testing.assert_close(kept.double(), parameters, **bounds)
        torch.testing.assert_close(per_variable.double(), expected, **bounds)
        torch.testing.assert_close(total.double(), expected.sum(1), **bounds)


class Sampler:
    """Calls of nade_sample on ``model``, and the reference's in float64."""

    def __init__(self, ops, model, head="bernoulli", activation="sigmoid"):
        self.ops, self.model, self.head, self.activation = ops, model, head, activation

    def arguments(self, model, given, known, temperature, first_index, start, stop):
        return (
            model.in_weight, model.out_weight, model.out_bias, model.order, model.in_offsets, model.out_offsets,
            model.scale, given, known, len(model.order), self.activation, self.head, HEADS[self.head][0], None,
            11, first_index, start, stop, temperature,
        )  # fmt: skip

    def __call__(self, state, start, stop, first_index=0, given=None, known=None, temperature=1.0):
        arguments = self.arguments(self.model, given, known, temperature, first_index, start, stop)
        return self.ops.nade_sample(state, *arguments)

    def by_reference(self, state, start, stop, first_index=0, given=None, known=None, temperature=1.0):
        wide = Model.__new__(Model)
        for name, value in vars(self.model).items():
            setattr(wide, name, value.double() if value is not None and value.is_floating_point() else value)
        given = None if given is None else given.double()
        arguments = self.arguments(wide, given, known, temperature, first_index, start, stop)
        return reference.nade_sample(state.double(), *arguments)

    def check(self, batch, tolerance):
        """Draws equal the reference's, in one go or in two, alone or in company, with known values and without."""
        model, head, variables = self.model, self.head, len(self.model.order)
        compute = reference.compute_dtype(model.in_weight.dtype)
        state = model.in_bias.to(compute).expand(batch, -1).contiguous()
        values, log_prob, after = self(state, 0, variables)
        want = self.by_reference(state, 0, variables)
        for got, expected in zip((values, log_prob, after), want, strict=True):
            torch.testing.assert_close(got.double(), expected, **tolerance)

        x = torch.empty_like(values).index_copy(1, model.order, values)
        gathers = model.in_offsets is not None or len(model.in_weight) != variables
        weights = (model.in_weight, model.in_bias, model.out_weight, model.out_bias, model.order)
        arguments = (*weights, model.in_offsets, model.out_offsets, model.scale, self.activation)
        scored, _ = self.ops.nade_log_prob_forward(
            x.long() if gathers else x, *arguments, head, HEADS[head][0], None, False, False, "auto"
        )
        torch.testing.assert_close(log_prob, scored.double(), rtol=1e-4, atol=1e-4)

        middle = variables // 2
        first, first_log_prob, between = self(state, 0, middle)
        second, second_log_prob, end = self(between, middle, variables)
        assert torch.equal(torch.cat([first, second], 1), values) and torch.equal(end, after)
        torch.testing.assert_close(first_log_prob + second_log_prob, log_prob)
        alone, alone_log_prob, alone_after = self(state[batch - 1 :], 0, variables, first_index=batch - 1)
        assert torch.equal(alone[0], values[-1]) and torch.equal(alone_log_prob[0], log_prob[-1])
        assert torch.equal(alone_after[0], after[-1])

        known = torch.zeros(batch, variables, dtype=torch.bool).index_fill(1, model.order[: middle + 1], True)
        known[0, model.order[0]] = False
        options = {"given": x.flip(0), "known": known, "temperature": 0.7, "first_index": 2**40 + 3}
        got = self(state, 0, variables, **options)
        for a, b in zip(got, self.by_reference(state, 0, variables, **options), strict=True):
            torch.testing.assert_close(a.double(), b, **tolerance)
        taken = torch.empty_like(x).index_copy(1, model.order, got[0])
        assert torch.equal(taken[known], x.flip(0)[known])


@pytest.mark.parametrize("hidden", HIDDEN)
def test_sampling(ops, hidden):
    dtype = torch.float64 if hidden < 100 else torch.float32
    Sampler(ops, Model(19, hidden, dtype)).check(3, tolerance_of(dtype))


@pytest.mark.parametrize("variables", [1, 2, 31, 33, 65, 66])
def test_sampling_odd_and_even_counts(ops, variables):
    """One warp takes two positions at a time, and looks up what 32 of them need."""
    Sampler(ops, Model(variables, 40, torch.float32)).check(3, tolerance_of(torch.float32))


@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("head", [name for name in HEADS if name != "bernoulli"])
def test_sampling_heads(ops, head, count, ragged):
    for hidden, dtype in ((19, torch.float64), (160, torch.float32)):
        model, _ = head_model(head, count, hidden, dtype, ragged=ragged, scaled=ragged and hidden == 160)
        Sampler(ops, model, head).check(2, tolerance_of(dtype))


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sampling_from_16_bits(ops, dtype, head):
    for hidden in (33, 160):
        Sampler(ops, head_model(head, 10, hidden, dtype)[0], head, "tanh").check(2, tolerance_of(torch.float32))


def test_sampling_gathered_bits(ops):
    Sampler(ops, Model(9, 19, torch.float64, rows_in=2, scaled=True)).check(2, tolerance_of(torch.float64))


@pytest.mark.parametrize(("hidden", "dtype"), [(1030, torch.float64), (9001, torch.float32)])
def test_sampling_many_hidden_units(ops, hidden, dtype):
    """Past what shared memory holds, and past what registers do: bernoulli at 9001 was refused once."""
    for head in ("bernoulli", "categorical"):
        Sampler(ops, head_model(head, 3, hidden, dtype, variables=4)[0], head).check(2, tolerance_of(dtype))


def test_sampling_more_parameters_than_shared_memory_holds(ops, set_budget):
    """And so many that one row of the batch is drawn after the other."""
    model, _ = head_model("categorical", 5000, 8, torch.float64, variables=2, ragged=True)
    for budget in (0, 256 << 20):
        set_budget(budget)
        Sampler(ops, model, "categorical").check(2, tolerance_of(torch.float64))


def test_rows_that_a_drawn_category_could_not_gather(ops):
    model = Model(2, 4, torch.float32, rows_in=3, rows_out=2)
    with pytest.raises(RuntimeError, match="nade_sample: in_weight and out_weight must have as many rows"):
        Sampler(ops, model, "categorical")(torch.zeros(1, 4), 0, 2)
