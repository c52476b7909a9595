"""The heads: the op head_log_prob and its gradient against the reference, the mathematics of each, and their models."""

import itertools
import math

import pytest
import torch
from conftest import available_isas, isa
from head_cases import HEADS, KINDS, all_events, model_of
from mixed_cases import mixed_heads, mixed_values, offsets_of

from ar_fast import functional, heads, models, reference

FIXED_SEED = 0
NAMES = ["bernoulli", "categorical", "gaussian_mixture", "logistic_mixture", "per_variable"]


def head_case(head, batch=5, variables=7, components=3, *, ragged=False, dtype=torch.float32, device="cpu", size=1.0):
    """Arguments of head_log_prob in the order of its schema; ``size`` scales the parameters."""
    if head == "per_variable":
        head_kinds, counts, _ = mixed_heads(variables, components)
        x = mixed_values(head_kinds, counts, batch).to(device, dtype)
        parameters = (torch.randn(batch, int(counts.sum())) * size).to(device, dtype)
        return parameters, x, offsets_of(counts).to(device), head, 0, head_kinds.to(device)
    counts = torch.randint(1, components + 1, (variables,)) if ragged else torch.full((variables,), components)
    if head == "bernoulli":
        counts = torch.ones(variables, dtype=torch.long)
    rows = counts * 3 if head.endswith("mixture") else counts
    x = {
        "bernoulli": lambda: torch.rand(batch, variables),
        "categorical": lambda: (torch.rand(batch, variables) * counts).floor(),
        "gaussian_mixture": lambda: torch.randn(batch, variables) * 2,
        "logistic_mixture": lambda: 2 * torch.randint(0, 9, (batch, variables)) / 8 - 1,
    }[head]()
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), rows.cumsum(0)]).to(device) if ragged else None
    parameters = (torch.randn(batch, int(rows.sum())) * size).to(device, dtype)
    return parameters, x.to(device, dtype), offsets, head, 9 if head == "logistic_mixture" else 0, None


def log_prob(parameters, x, offsets, head, levels, head_kinds=None):
    return functional.head_log_prob(parameters, x, offsets=offsets, head=head, levels=levels, head_kinds=head_kinds)


def upcast(case):
    return tuple(t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in case)


def assert_equals_reference(case, tolerance):
    torch.testing.assert_close(log_prob(*case).double(), reference.head_log_prob(*upcast(case)), **tolerance)
    own, other = (tuple(t.detach().clone().requires_grad_() for t in c[:2]) for c in (case, upcast(case)))
    result, want = log_prob(*own, *case[2:]), reference.head_log_prob(*other, *case[2:])
    weights = torch.randn_like(want)
    got = torch.autograd.grad(result, own, weights.to(result.dtype))
    wanted = torch.autograd.grad(want, other, weights, allow_unused=True)
    for a, b in zip(got, wanted, strict=True):
        b = torch.zeros_like(a, dtype=torch.float64) if b is None else b
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a.double() / scale, b / scale, **tolerance)


TOLERANCE = {torch.float64: {"rtol": 1e-11, "atol": 1e-11}, torch.float32: {"rtol": 1e-4, "atol": 2e-5}}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("head", NAMES)
def test_equals_the_reference(device, head, ragged, dtype):
    for size in ((0, 3, 2), (1, 1, 1), (5, 7, 19), (3, 19, 7), (2, 3, 111)):
        assert_equals_reference(head_case(head, *size, ragged=ragged, dtype=dtype, device=device), TOLERANCE[dtype])


@pytest.mark.parametrize("name", available_isas())
@pytest.mark.parametrize("head", NAMES)
def test_every_instruction_set(name, head):
    with isa(name):
        for dtype, tolerance in TOLERANCE.items():
            assert_equals_reference(head_case(head, 4, 9, 21, dtype=dtype), tolerance)


def test_nearly_a_thousand_categories(device):
    assert_equals_reference(head_case("categorical", 3, 4, 989, device=device), TOLERANCE[torch.float32])


@pytest.mark.parametrize("head", NAMES)
def test_gradcheck(device, head):
    parameters, x, *rest = head_case(head, 2, 4, 3, ragged=head != "bernoulli", dtype=torch.float64, device=device)
    # A category has no derivative by its number.
    inputs = [parameters.requires_grad_(), x.requires_grad_(head in ("bernoulli", "gaussian_mixture"))]
    assert torch.autograd.gradcheck(lambda p, v: log_prob(p, v, *rest), inputs)


@pytest.mark.heavy
@pytest.mark.parametrize("head", NAMES)
def test_opcheck_and_compile(device, ops, head):
    case = head_case(head, 3, 4, 2, device=device)
    torch.library.opcheck(ops.head_log_prob.default, (case[0].requires_grad_(), *case[1:]))
    torch.compiler.reset()  # more heads than a function may be compiled for
    compiled = torch.compile(lambda p, v: log_prob(p, v, *case[2:]), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*case[:2]), log_prob(*case))


@pytest.mark.parametrize("head", NAMES)
def test_strided_and_integer_inputs(device, head):
    parameters, x, *rest = head_case(head, 4, 6, 2, device=device)
    want = log_prob(parameters, x, *rest)
    spread = (t.repeat_interleave(2, 1)[:, ::2] for t in (parameters, x))
    assert torch.equal(log_prob(*spread, *rest), want)
    if head in ("bernoulli", "categorical"):
        assert torch.equal(log_prob(parameters, x.round().int(), *rest), log_prob(parameters, x.round(), *rest))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head", NAMES[:4])
def test_extreme_parameters_have_finite_log_prob_and_gradients(device, emulation, head, dtype):
    largest = 3e38 if dtype == torch.float32 else 1e300
    extremes = torch.tensor([0.0, 1e-30, 50.0, -50.0, 800.0, -800.0, 1e15, -1e15, largest, -largest], dtype=dtype)
    rows = {"bernoulli": 1, "categorical": 3}.get(head, 6)
    parameters = torch.cat(
        [extremes[torch.randint(0, 10, (400 if emulation else 4000, rows))], extremes[:, None].expand(-1, rows)]
    )
    x = head_case(head, len(parameters), 1, 3, dtype=dtype)[1]
    parameters, levels = parameters.to(device).requires_grad_(), 9 if head == "logistic_mixture" else 0
    result = log_prob(parameters, x.to(device), None, head, levels)
    assert result.isfinite().all() or (head in ("bernoulli", "categorical") and result.min() >= -float("inf"))
    assert not result.isnan().any()
    (grad,) = torch.autograd.grad(result.sum(), parameters)
    assert grad.isfinite().all()


def test_log_scales_below_the_floor_change_nothing_and_have_no_gradient(device):
    for head in ("gaussian_mixture", "logistic_mixture"):
        parameters = torch.zeros(1, 3, device=device)
        parameters[0, 2] = -9.0
        parameters.requires_grad_()
        x = torch.zeros(1, 1, device=device)
        result = log_prob(parameters, x, None, head, 9 if head == "logistic_mixture" else 0)
        floor = parameters.detach().clone().index_fill(1, torch.tensor([2], device=device), -7.0)
        assert torch.equal(result, log_prob(floor, x, None, head, 9 if head == "logistic_mixture" else 0))
        assert torch.autograd.grad(result.sum(), parameters)[0][0, 2] == 0


@pytest.mark.parametrize("levels", [2, 3, 16, 256])
def test_levels_sum_to_one(device, levels):
    parameters = (torch.randn(20, 9, dtype=torch.float64) * 3).to(device)
    grid = heads.LogisticMixture(3, levels).encode(torch.arange(levels, device=device), torch.float64)
    total = sum(log_prob(parameters, x.expand(20, 1), None, "logistic_mixture", levels).exp() for x in grid)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=1e-12)


def test_a_density_integrates_to_one(device):
    parameters = torch.randn(1, 12, dtype=torch.float64, device=device).expand(20001, -1)
    x = torch.linspace(-60, 60, 20001, dtype=torch.float64, device=device).unsqueeze(1)
    density = log_prob(parameters, x, None, "gaussian_mixture", 0).exp()
    torch.testing.assert_close(torch.trapezoid(density[:, 0], x[:, 0]).item(), 1.0, rtol=1e-6, atol=1e-6)


def test_the_mixtures_are_those_of_torch_distributions(device):
    parameters, x, *_ = head_case("gaussian_mixture", 6, 1, 4, device=device, dtype=torch.float64)
    logits, means, log_scales = parameters.unflatten(1, (3, 4)).unbind(1)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits), torch.distributions.Normal(means, log_scales.exp())
    )
    torch.testing.assert_close(log_prob(parameters, x, None, "gaussian_mixture", 0)[:, 0], mixture.log_prob(x[:, 0]))


# ---------------------------------------------------------------- in models


@pytest.mark.heavy
@KINDS
@pytest.mark.parametrize("name", HEADS)
def test_sampled_log_prob_and_steps_agree_with_log_prob(kind, device, name):
    head = HEADS[name]
    model = model_of(head, kind, device=device, **({"activation_scale": True} if kind == "NADE" else {}))
    samples, sampled = model.sample(7, seed=5, return_log_prob=True)
    assert samples.dtype == (torch.float64 if name in ("Bernoulli", "GaussianMixture") else torch.int64)
    torch.testing.assert_close(model.log_prob(samples), sampled)
    per_variable = model.log_prob(samples, per_variable=True)
    state = model.begin(7)
    while state.variable is not None:
        i = state.variable
        own = heads.Categorical(head.categories[i]) if name.startswith("Categorical,") else head
        term = own.log_prob(state.parameters.unsqueeze(1), samples[:, i : i + 1])[:, 0]
        torch.testing.assert_close(term, per_variable[:, i])
        state = model.next(state, samples[:, i])
    parameters = model(samples)
    assert parameters.shape == ((7, 10) if name.startswith("Categorical,") else (7, 4, head.counts(4)))
    torch.testing.assert_close(head.log_prob(parameters, samples), per_variable)


@KINDS
@pytest.mark.parametrize("name", HEADS)
def test_jacobian_zeros(kind, name):
    """The parameters of a position depend on the positions before it and on no other."""
    head = HEADS[name]
    model = model_of(head, kind)
    x = model.sample(1, seed=0).double()
    order, offsets = (
        model.order.tolist(),
        [0, *itertools.accumulate(head.counts(4) if isinstance(head.counts(4), list) else [head.counts(4)] * 4)],
    )
    base = model(x).flatten()
    for p, i in enumerate(order):
        changed = x.clone()
        if name == "GaussianMixture":
            changed[0, i] += 1
        else:
            sizes = all_events(head, 4).amax(0) + 1
            changed[0, i] = (changed[0, i] + 1) % sizes[i]
        if torch.equal(changed, x):
            continue
        moved = model(changed).flatten() != base
        for q, j in enumerate(order):
            assert bool(moved[offsets[j] : offsets[j + 1]].any()) == (q > p)


@pytest.mark.heavy
def test_relabelling_categories_changes_nothing(device):
    """Permuting labels together with their weight rows leaves log_prob as it was."""
    model = model_of(heads.Categorical(5), device=device)
    x = torch.randint(0, 5, (9, 4), device=device)
    relabel = torch.stack([torch.randperm(5) for _ in range(4)]).to(device)
    before = model.log_prob(x)
    rows = (torch.arange(4, device=device)[:, None] * 5 + relabel.argsort(1)).flatten()
    with torch.no_grad():
        for weight in (model.in_weight, model.out_weight, model.out_bias):
            weight.copy_(weight[rows].clone())
    torch.testing.assert_close(model.log_prob(relabel.gather(1, x.T).T), before)


@pytest.mark.heavy
def test_relabelling_the_categories_of_a_made_changes_nothing(device):
    """Permuting labels together with their columns and rows, by position, leaves log_prob as it was."""
    model = model_of(heads.Categorical([2, 5, 3, 4]), "MADE", device=device)
    x = (torch.rand(9, 4, device=device) * torch.tensor([2, 5, 3, 4], device=device)).long()
    before = model.log_prob(x)
    moved, rows = x.clone(), []
    for start, i in zip(model.in_offsets.tolist(), model.order.tolist(), strict=False):
        relabel = torch.randperm(model.counts[i], device=device)
        moved[:, i] = relabel[x[:, i]]
        rows.append(start + relabel.argsort())
    rows, first, last = torch.cat(rows), model.layers[0], model.layers[-1]
    with torch.no_grad():
        first.weight.copy_(first.weight[:, rows].clone())
        last.weight.copy_(last.weight[rows].clone())
        last.bias.copy_(last.bias[rows].clone())
    assert not torch.equal(moved, x)
    torch.testing.assert_close(model.log_prob(moved), before)


def test_another_order_is_loaded_into_a_made_of_different_variables(tmp_path):
    model = model_of(heads.Categorical([2, 5, 3, 4]), "MADE")
    x = model.sample(5, seed=0)
    model.save(tmp_path)
    others = [
        models.MADE(4, [40, 30], "tanh", head=model.head, order=[0, 1, 2, 3], dtype=torch.float64) for _ in range(2)
    ]
    others[0].load(tmp_path)
    others[1].load_state_dict(model.state_dict())
    for other in others:
        assert torch.equal(other.log_prob(x), model.log_prob(x)) and torch.equal(other.sample(5, seed=0), x)
        assert torch.equal(other(x), model(x))


@KINDS
@pytest.mark.parametrize("name", HEADS)
def test_a_prefix_is_kept(kind, name):
    model = model_of(HEADS[name], kind)
    given = model.sample(6, seed=1)
    known = torch.tensor([True, False, True, False])
    completed = model.sample(6, seed=2, given=given, known=known)
    assert torch.equal(completed[:, known], given[:, known])
    assert not torch.equal(completed, given)


@KINDS
@pytest.mark.parametrize("name", HEADS)
def test_support_and_values(kind, name):
    head = HEADS[name]
    model = model_of(head, kind)
    distribution = model.distribution()
    samples = distribution.sample((5,))
    assert distribution.support.check(samples).all()
    bad = samples.double().clone()
    bad[2, 1] = {"Bernoulli": 0.5, "GaussianMixture": float("inf")}.get(name, 9.0)
    with pytest.raises(ValueError, match=rf"{model._name}: x must be in the support of .* got .* at index \(2, 1\)"):
        model.log_prob(bad)
    state = model.begin(5)
    with pytest.raises(ValueError, match=f"{model._name}: value must be in the support of"):
        model.next(state, torch.full((5,), float("nan"), dtype=torch.float64))


@pytest.mark.parametrize("name", HEADS)
def test_config_and_equality(name):
    head = HEADS[name]
    assert heads.from_config(head.config()) == head and hash(heads.from_config(head.config())) == hash(head)
    assert eval(repr(head), vars(heads)) == head
    assert head != heads.Categorical(17)


@KINDS
@pytest.mark.parametrize("name", HEADS)
def test_save_and_load(kind, tmp_path, name):
    model = model_of(HEADS[name], kind)
    model.save(tmp_path)
    loaded = models.load(tmp_path)
    x = model.sample(3, seed=0)
    assert loaded.head == model.head and torch.equal(loaded.log_prob(x), model.log_prob(x))


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("Categorical: categories must be a positive integer or some of them, got 0", lambda: heads.Categorical(0)),
        ("Categorical: categories must be .* got \\[\\]", lambda: heads.Categorical([])),
        ("Categorical: categories must have one entry .* 4, got 2", lambda: model_of(heads.Categorical([2, 2]))),
        ("GaussianMixture: components must be a positive integer, got 0", lambda: heads.GaussianMixture(0)),
        ("LogisticMixture: levels must be an integer of at least 2, got 1", lambda: heads.LogisticMixture(2, 1)),
        ("heads: name must be one of Bernoulli, .* got 'Poisson'", lambda: heads.from_config({"name": "Poisson"})),
        ("heads: Bernoulli must be made with its own", lambda: heads.from_config({"name": "Bernoulli", "k": 1})),
        ("RNADE: head must be heads.GaussianMixture, got", lambda: models.RNADE(4, 3, head=heads.Bernoulli())),
        ("categories have no mean", lambda: model_of(heads.Categorical(3)).initialize_from_mean(torch.zeros(4))),
    ],
)  # fmt: skip
def test_bad_arguments(message, make):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.heavy
def test_rnade(device):
    model = models.RNADE(5, 7, components=3, device=device, dtype=torch.float64)
    x = torch.randn(6, 5, dtype=torch.float64, device=device)
    weights = model.in_weight, model.in_bias, model.out_weight, model.out_bias
    with torch.no_grad():
        model.activation_scale.copy_(torch.rand(5) + 0.5)
    want = reference.nade_log_prob(
        x, *weights, activation_scale=model.activation_scale, activation="relu", head="gaussian_mixture"
    )
    got = model.log_prob(x)
    torch.testing.assert_close(got, want)
    for a, b in zip(*(torch.autograd.grad(r.sum(), list(model.parameters())) for r in (got, want)), strict=True):
        torch.testing.assert_close(a, b)
    assert models.RNADE(5, 7, activation_scale=False).activation_scale is None


def test_rnade_is_saved_and_loaded(tmp_path):
    model = models.RNADE(3, 4, components=2)
    model.save(tmp_path)
    loaded = models.load(tmp_path)
    x = model.sample(3, seed=0)
    assert type(loaded) is models.RNADE and torch.equal(loaded.log_prob(x), model.log_prob(x))


@pytest.mark.full
def test_rnade_learns_a_mixture():
    """A noisy ring: a few hundred steps gain more than a nat on independent normal variables."""
    angle = torch.rand(2000) * 2 * math.pi
    x = torch.stack([angle.cos(), angle.sin()], 1) * math.sqrt(2) + 0.05 * torch.randn(2000, 2)
    model = models.RNADE(2, 64, components=5)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = -model.log_prob(x).mean()
        loss.backward()
        optimizer.step()
    independent = torch.distributions.Normal(x.mean(0), x.std(0)).log_prob(x).sum(1).mean()
    assert -loss.item() > independent.item() + 1.0


@pytest.mark.parametrize("per_variable", [False, True])
def test_many_parameters_are_recomputed_not_kept(per_variable):
    """4096 rows of 5000 parameters are more than 64 MiB, half of them less; the gradients agree."""
    sizes = (5000, 2), (2,), (5000, 2), (5000,)
    weights = [(torch.randn(size, dtype=torch.float64) * 0.1).float().requires_grad_() for size in sizes]
    x = torch.randint(0, 2500, (4096, 2))
    upstream = torch.randn(4096, 2) if per_variable else torch.randn(4096)

    def gradients(part):
        log_prob = functional.nade_log_prob(x[part], *weights, head="categorical", per_variable=per_variable)
        return torch.autograd.grad((log_prob * upstream[part]).sum(), weights)

    halves = gradients(slice(0, 2048)), gradients(slice(2048, 4096))
    for whole, first, second in zip(gradients(slice(0, 4096)), *halves, strict=True):
        torch.testing.assert_close(whole, first + second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "column, value, message",
    [
        (0, 4, r"head_kinds must be 0 \.\.\. 3, got 4 for variable 2"),
        (0, 0, "a variable must have 1 parameter for a bernoulli head, got 2 for variable 2"),
        (0, 2, "a variable must have 3 K parameters for a mixture head, got 2 for variable 2"),
        (0, 3, "head_kinds must have at least 2 levels, got 0 for variable 2"),
        (1, 5, "head_kinds must have levels of 0 except for logistic_mixture, got 5 for variable 2"),
    ],
)
def test_kinds_that_are_none(column, value, message):
    head_kinds = torch.tensor([[0, 0], [2, 0], [1, 0]])
    offsets, x = torch.tensor([0, 1, 4, 6]), torch.zeros(1, 3)
    assert log_prob(torch.zeros(1, 6), x, offsets, "per_variable", 0, head_kinds).isfinite().all()
    head_kinds[2, column] = value
    with pytest.raises(RuntimeError, match=f"head_log_prob: {message}"):
        log_prob(torch.zeros(1, 6), x, offsets, "per_variable", 0, head_kinds)
