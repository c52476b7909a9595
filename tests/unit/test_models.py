"""The model interface: shapes, orders, contexts, known variables, one variable at a time, compilers and transforms."""

import copy
import dataclasses
import sys

import pytest
import torch
from model_cases import CASES, FIXED_ORDER_KINDS, KINDS, make_context, make_model, random_binary

from ar_fast import heads, models, orderings, reference
from ar_fast.models import _calls

FIXED_SEED = 0
pytestmark = pytest.mark.heavy


def reference_of(model):
    if isinstance(model, models.NADE):
        hidden = model.hidden_features
        plain = reference.ReferenceNADE(model.variables, hidden, model.order, model.activation, model.context_features)
    elif isinstance(model, models.ARMLP):
        hidden = model.hidden_features
        plain = reference.ReferenceARMLP(model.variables, hidden, model.order, model.activation, model.context_features)
    elif isinstance(model, models.FVSBN):
        plain = reference.ReferenceFVSBN(model.variables, model.order, model.context_features)
    elif isinstance(model, models.DeepNADE):
        plain = reference.ReferenceDeepNADE(
            model.variables, model.hidden_features, model.order, model.activation, model.context_features
        )
    elif isinstance(model, models.OffsetNADE):
        plain = reference.ReferenceOffsetNADE(
            model.grid,
            model.hidden_features,
            model.window,
            model.order,
            model.activation,
            model.shared_output,
            model.context_features,
        )
    elif isinstance(model, models.RNN):
        plain = reference.ReferenceRNN(
            model.variables, model.hidden_features, model.order, model.cell, model.num_layers, model.context_features
        )
    else:
        plain = reference.ReferenceMADE(
            model.variables,
            model.degrees,
            model.order,
            model.activation,
            model.context_features,
            model.direct is not None,
            model.residual,
            model.n_masks > 1,
        )
    plain = plain.to(model.device, model.dtype)
    # Which set of masks is in use is no part of the reference: it was made with that one's degrees and order.
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name != "mask_in_use"})
    return plain


@pytest.mark.parametrize("kind, context_features", CASES)
def test_model_and_reference_agree(kind, context_features, device):
    model = make_model(kind, 21, context_features, device=device)
    plain = reference_of(model)
    x, context = random_binary(5, 21, device=device), make_context(context_features, 5, device=device)
    torch.testing.assert_close(model(x, context).squeeze(-1), plain(x, context))
    log_prob, expected = model.log_prob(x, context), plain.log_prob(x, context)
    torch.testing.assert_close(log_prob, expected)
    log_prob.mean().backward()
    expected.mean().backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    assert gradients.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=lambda text, name=name: f"{name}: {text}")
    one_context = None if context is None else context[0]
    assert torch.equal(model.sample(6, one_context, seed=3), plain.sample(6, one_context, seed=3))


@pytest.mark.parametrize("kind, context_features", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shapes_and_dtypes(kind, context_features, dtype, device):
    model = make_model(kind, (2, 3, 4), context_features, device=device, dtype=dtype)
    context = make_context(context_features, 5, device=device, dtype=dtype)
    x = random_binary(6, 5, 2, 3, 4, device=device, dtype=torch.float32)
    expected = model.log_prob(x, context)
    assert expected.shape == (6, 5) and expected.dtype == torch.float32
    assert model.log_prob(x, context, per_variable=True).shape == x.shape
    assert model(x, context).shape == (6, 5, 24, 1)
    for other in (torch.bool, torch.uint8, torch.int64, dtype):
        assert torch.equal(model.log_prob(x.to(other), context), expected)
    samples, log_prob = model.sample((6,), context, seed=1, return_log_prob=True)
    if context is None:
        assert samples.shape == (6, 2, 3, 4) and log_prob.shape == (6,)
        assert model.sample(seed=1).shape == (2, 3, 4) and model.log_prob(x[0, 0]).shape == ()
    else:
        assert samples.shape == (6, 5, 2, 3, 4) and log_prob.shape == (6, 5)
        # A product of another size may round its 16-bit results otherwise.
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(model.log_prob(x[:, 1], context[1]), expected[:, 1], rtol=tolerance, atol=tolerance)
    assert samples.dtype == log_prob.dtype == torch.float32


@pytest.mark.parametrize("kind, context_features", CASES)
def test_a_long_evaluation_in_several_calls(kind, context_features, monkeypatch):
    model = make_model(kind, (2, 6), context_features)
    context = make_context(context_features, 5)
    x = random_binary(6, 5, 2, 6)
    calls = []
    own = model._log_prob
    monkeypatch.setattr(model, "_log_prob", lambda *arguments: calls.append(1) or own(*arguments))
    for per_variable in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(_calls, "_FEW", 0)
            patch.setattr(_calls, "_MULTIPLY_ADDS", 9 * model._multiply_adds())
            calls.clear()
            with torch.no_grad():
                found = model.log_prob(x, context, per_variable=per_variable)
            assert len(calls) == 4
            assert model.log_prob(x, context, per_variable=per_variable).requires_grad and len(calls) == 5
        expected = model.log_prob(x, context, per_variable=per_variable)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batches(kind, device):
    model = make_model(kind, (2, 3), device=device)
    x = torch.zeros(0, 4, 2, 3, device=device, dtype=torch.float64)
    assert model.log_prob(x).shape == (0, 4)
    assert model(x).shape == (0, 4, 6, 1)
    assert model.sample(0, seed=1).shape == (0, 2, 3)
    model.log_prob(x).sum().backward()
    assert all(bool((parameter.grad == 0).all()) for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_one_variable(kind, device):
    model = make_model(kind, 1, device=device)
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64, device=device)
    torch.testing.assert_close(model.log_prob(x).exp().sum().item(), 1.0)
    samples, log_prob = model.sample(9, seed=1, return_log_prob=True)
    torch.testing.assert_close(log_prob, model.log_prob(samples))


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_order_is_the_raster_of_pixels(kind):
    assert make_model(kind, (4, 5), order=None).order is None
    assert torch.equal(make_model(kind, (3, 2, 2), order=None).order, orderings.raster((3, 2, 2)))
    assert make_model(kind, (1, 4, 5), order=None).order is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_renames_variables(kind, device):
    """A model in some order is the model in the identity order of the permuted variables."""
    order = orderings.random(8, seed=1)
    plain, ordered = make_model(kind, 8, order=None, device=device), make_model(kind, 8, order=order, device=device)
    with torch.no_grad():
        for name, parameter in ordered.named_parameters():
            source = dict(plain.named_parameters())[name]
            by_variable = kind in ("NADE", "DeepNADE", "OffsetNADE") and source.shape[0] == 8 and name != "in_bias"
            if kind == "MADE-masks":
                by_variable = source.shape[0] == 8
                source = source[:, order.argsort()] if source.shape[-1] == 8 and source.dim() == 2 else source
            parameter.copy_(source[order.argsort()] if by_variable else source)
    x = random_binary(4, 8, device=device)
    torch.testing.assert_close(ordered.log_prob(x), plain.log_prob(x[:, order]))
    renamed = plain.log_prob(x[:, order], per_variable=True)[:, order.argsort()]
    torch.testing.assert_close(ordered.log_prob(x, per_variable=True), renamed)


@pytest.mark.parametrize("kind, context_features", CASES)
def test_begin_and_next_agree_with_forward(kind, context_features, device):
    model = make_model(kind, (3, 4), context_features, device=device)
    x, context = random_binary(5, 3, 4, device=device), make_context(context_features, 5, device=device)
    expected = model(x, context)
    state = model.begin(5, context)
    visited = []
    while state.parameters is not None:
        visited.append(state.variable)
        torch.testing.assert_close(state.parameters, expected[:, state.variable])
        state = model.next(state, x.flatten(1)[:, state.variable])
    assert visited == model.order.tolist() and state.position == 12 and state.variable is None
    with pytest.raises(ValueError, match="state must have a variable left, got all 12 known"):
        model.next(state, x[:, 0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_begin_and_next_are_differentiable_and_can_branch(kind):
    model = make_model(kind, 6)
    start = model.begin()
    state = model.next(start, torch.tensor(1))
    model.next(state, torch.tensor(0))
    again = model.next(state, torch.tensor(1))
    again.parameters.sum().backward()
    x = torch.zeros(6, dtype=torch.float64)
    x[model.order[:2]] = 1
    torch.testing.assert_close(again.parameters, model(x)[again.variable])
    with_gradient = sum(int(parameter.grad is not None) for parameter in model.parameters())
    assert with_gradient >= min(4, len(list(model.parameters())))


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_and_generators(kind, device, emulation):
    model = make_model(kind, 13 if emulation else 30, device=device)
    torch.manual_seed(4)
    first, second = model.sample(20), model.sample(20)
    torch.manual_seed(4)
    assert torch.equal(model.sample(20), first) and not torch.equal(first, second)
    state = torch.get_rng_state()
    explicit = model.sample(20, seed=8)
    assert torch.equal(torch.get_rng_state(), state), "an explicit seed touches no generator"
    assert torch.equal(explicit, model.sample(20, seed=8)) and not torch.equal(explicit, model.sample(20, seed=9))
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(model.sample(20, generator=generator), first)
    assert torch.equal(torch.get_rng_state(), state), "a generator of the caller's leaves the default one alone"
    assert torch.equal(model.sample(20, generator=generator), second)


@pytest.mark.parametrize("kind, context_features", CASES)
def test_known_variables_differ_by_row_and_by_event(kind, context_features, device):
    model = make_model(kind, (3, 3), context_features, device=device)
    context = make_context(context_features, 2, device=device)
    batch = (4, 2) if context_features else (4,)
    lengths = (
        torch.arange(4).repeat_interleave(2).reshape(4, 2)[..., None] if context_features else torch.arange(4)[:, None]
    )
    known = (model.order.argsort().cpu() < 3 * lengths).reshape(*batch, 3, 3).to(device)
    given = random_binary(*batch, 3, 3, device=device)
    samples, log_prob = model.sample(4, context, seed=2, given=given, known=known, return_log_prob=True)
    assert torch.equal(samples[known], given[known])
    terms = model.log_prob(samples, context, per_variable=True)
    torch.testing.assert_close(log_prob, terms.masked_fill(known, 0).flatten(len(batch)).sum(-1))
    free = model.sample(4, context, seed=2)
    assert torch.equal(samples[0], free[0]), "nothing is known in the first event"


@pytest.mark.parametrize("kind", FIXED_ORDER_KINDS)
def test_clamping_fixes_values_and_draws_the_others_given_those_before(kind, device):
    model = make_model(kind, 12, device=device)
    known = torch.zeros(12, dtype=torch.bool, device=device)
    known[model.order[5]] = True
    given = torch.full((12,), 1.0, dtype=torch.float64, device=device)
    free = model.sample(50, seed=2)
    clamped = model.sample(50, seed=2, given=given, known=known, clamp=True)
    before = model.order[:5]
    assert torch.equal(clamped[:, before], free[:, before])
    assert bool((clamped[:, known] == 1).all()) and not torch.equal(clamped, free)
    given[~known] = torch.nan
    assert torch.equal(clamped, model.sample(50, seed=2, given=given, known=known, clamp=True)), "only known counts"


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_keeps_no_graph_and_shows_progress_on_a_terminal(kind, capsys, monkeypatch):
    model = make_model(kind, 10)
    assert not model.sample(3, seed=1).requires_grad
    assert capsys.readouterr().err == ""
    model.sample(3, seed=1, progress=True)
    assert capsys.readouterr().err == "", "a log is no terminal"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    model.sample(3, seed=1, progress=True)
    assert "30.0/30.0" in capsys.readouterr().err


@pytest.mark.parametrize("kind, context_features", CASES)
def test_distribution(kind, context_features):
    model = make_model(kind, (2, 3), context_features)
    context = make_context(context_features, 4)
    distribution = model.distribution(context)
    batch = (4,) if context_features else ()
    assert distribution.batch_shape == batch and distribution.event_shape == (2, 3)
    torch.manual_seed(0)
    x = distribution.sample((7,))
    assert x.shape == (7, *batch, 2, 3) and bool(distribution.support.check(x).all())
    torch.testing.assert_close(distribution.log_prob(x), model.log_prob(x, context))
    assert distribution.log_prob(x.flatten(0, -3)[0]).shape == batch
    wider = distribution.expand((5, *batch))
    assert wider.batch_shape == (5, *batch)
    x = wider.sample((7,))
    assert x.shape == (7, 5, *batch, 2, 3) and wider.log_prob(x).shape == (7, 5, *batch)


@pytest.mark.parametrize("kind", KINDS)
def test_initialize_from_mean(kind):
    model = make_model(kind, (2, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-6)
    mean = torch.tensor([[0.1, 0.5, 0.9], [0.3, 0.2, 0.7]])
    model.initialize_from_mean(mean)
    probability = model(torch.zeros(2, 3, dtype=torch.float64)).sigmoid().reshape(2, 3)
    if isinstance(model, models.RNN):
        # One bias for all variables: the mean of theirs.
        mean = mean.double().logit().mean().sigmoid().expand(2, 3)
    torch.testing.assert_close(probability, mean.double(), atol=1e-4, rtol=0)
    model.initialize_from_mean(torch.zeros(2, 3))
    assert bool(model(torch.zeros(2, 3, dtype=torch.float64)).isfinite().all()), (
        "a variable that never varied must not end in infinity"
    )


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_of_training_lower_the_loss(kind, device):
    torch.manual_seed(0)
    model = make_model(kind, 16, device=device, dtype=torch.float32)
    model.reset_parameters()
    x = random_binary(8, 16, device=device, dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(120 if kind.startswith("RNN") else 30):  # A recurrent model learns slowly at first.
        optimizer.zero_grad()
        loss = -model.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0] and losses[0] < 16


@pytest.mark.parametrize("kind, context_features", CASES)
def test_modules_copy_move_and_build_on_meta(kind, context_features):
    model = make_model(kind, 7, context_features, dtype=torch.float32)
    x, context = random_binary(3, 7, dtype=torch.float32), make_context(context_features, 3, dtype=torch.float32)
    expected = model.log_prob(x, context)
    assert torch.equal(copy.deepcopy(model).log_prob(x, context), expected)
    double = copy.deepcopy(model).double()
    double_context = None if context is None else context.double()
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.log_prob(x.double(), double_context), expected.double(), rtol=1e-5, atol=1e-5)
    meta = make_model_on_meta(kind, context_features)
    assert meta.device.type == "meta" and all(buffer.device.type == "meta" for buffer in meta.buffers())


def make_model_on_meta(kind, context_features):
    options = {"context_features": context_features, "device": "meta", "order": [2, 0, 1]}
    if kind == "MADE-residual":
        return models.MADE(3, [4, 4, 4], direct=True, residual=True, **options)
    if kind == "MADE-masks":
        return models.MADE(3, [4, 5], degrees="random", n_masks=3, n_orders=2, **options)
    sizes = {
        "NADE": (3, 4),
        "MADE": (3, [4, 5]),
        "FVSBN": (3,),
        "ARMLP": (3, 4),
        "DeepNADE": (3, [4]),
        "OffsetNADE": (3, 4, 2),
        "RNN": (3, 4),
        "RNN-LSTM": (3, 4, "lstm", 2),
    }[kind]
    return getattr(models, kind.split("-")[0])(*sizes, **options)


def test_made_spreads_degrees_evenly_or_takes_given_ones():
    assert [layer.tolist() for layer in models.MADE(5, [4, 8, 2]).degrees] == [
        [1, 2, 3, 4],
        [1, 1, 2, 2, 3, 3, 4, 4],
        [2, 4],
    ]
    assert models.MADE(4, [4], context_features=2).degrees[0].tolist() == [0, 1, 2, 3]
    model = models.MADE(4, [5], degrees=[[3, 1, 2, 1, 3]])
    assert model.degrees[0].tolist() == [1, 1, 2, 3, 3]
    masks = [layer.mask for layer in model.layers]
    assert all(mask.rows is None and mask.columns is None for mask in masks), "units are sorted: a staircase in place"


@pytest.mark.parametrize(
    ("hidden_features", "options", "message"),
    [
        ([4, 4], {}, r"hidden_features must be an odd number of equal sizes with residual, .* got \[4, 4\]"),
        ([4, 4, 5], {}, r"hidden_features must be an odd number of equal sizes with residual, .* got \[4, 4, 5\]"),
        ([2, 2, 2], {"degrees": [[1, 2], [1, 2], [1, 3]]}, "degrees must be the same in all layers with residual"),
    ],
)
def test_a_residual_made_has_equal_layers(hidden_features, options, message):
    with pytest.raises(ValueError, match=f"MADE: {message}"):
        models.MADE(4, hidden_features, residual=True, **options)


@pytest.mark.parametrize("kind", ["FVSBN", "ARMLP"])
def test_what_is_masked_has_no_effect_and_no_gradient(kind, device):
    model = make_model(kind, 11, device=device)
    x = model.sample(5, seed=0)
    expected = model.log_prob(x)
    expected.sum().backward()
    if kind == "FVSBN":
        weight, masked = model.weight, torch.ones(11, 11, dtype=torch.bool).triu()
    else:
        # Networks 0 ... 7 see up to 7 inputs, 8 ... 10 up to 10; each row of a block has all its networks.
        first = (torch.arange(7)[:, None] >= torch.arange(8)).flatten()
        second = (torch.arange(10)[:, None] >= torch.arange(8, 11)).flatten()
        weight, masked = model.in_weight, torch.cat([first, second])
    assert bool((weight.grad[masked] == 0).all())
    with torch.no_grad():
        weight[masked] = torch.nan
    torch.testing.assert_close(model.log_prob(x), expected)
    assert torch.equal(model.sample(5, seed=0), x)


@pytest.mark.parametrize("categories", [None, 3, [2, 1, 4, 3, 2, 5]])
@pytest.mark.parametrize("kind", ["FVSBN", "ARMLP", "MADE"])
def test_the_parameters_that_count_are_those_with_a_gradient(kind, categories):
    head = None if categories is None else heads.Categorical(categories)
    model = make_model(kind, 6, 2, head=head)
    x = model.sample((200, 20), make_context(2, 20), seed=0)
    model.log_prob(x, make_context(2, 20)).sum().backward()
    used = sum(int((parameter.grad != 0).sum()) for parameter in model.parameters())
    # One category alone is always likely as can be: its own logit has no gradient.
    certain = 0
    if isinstance(categories, list):
        inputs_before = sum(categories[i] for i in model.order.tolist()[: model.order.tolist().index(1)])
        certain = {"FVSBN": inputs_before + 1 + 2, "ARMLP": 5 * (inputs_before + 1 + 1 + 2) + 1}.get(kind)
    if certain is not None:
        assert model.count_parameters() == used + certain
    else:
        assert used <= model.count_parameters() < sum(parameter.numel() for parameter in model.parameters())


def test_armlp_that_does_not_fit_into_memory_is_refused():
    with pytest.raises(MemoryError, match=r"ARMLP: the parameters must fit into the memory of cpu, .* GiB free, got"):
        models.ARMLP(10**5, hidden_features=1000)
    assert models.ARMLP(2000, hidden_features=1000, device="meta").in_weight.numel() > 2000 * 1999 / 2 * 1000


@pytest.mark.parametrize(
    "kind, context_features",
    # test_recompilation.py compiles models without a context.
    [case if case.values[1] else pytest.param(*case.values, id=case.id, marks=pytest.mark.full) for case in CASES],
)
def test_compiles_without_graph_breaks(kind, context_features, device):
    model = make_model(kind, (2, 3), context_features, device=device, dtype=torch.float32)
    x = random_binary(4, 2, 3, device=device, dtype=torch.float32)
    context = make_context(context_features, 4, device=device, dtype=torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(lambda x, context: model.log_prob(x, context), fullgraph=True, backend="aot_eager")
    log_prob = compiled(x, context)
    torch.testing.assert_close(log_prob, model.log_prob(x, context))
    log_prob.sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.log_prob(x, context).sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.filterwarnings("ignore:ar_fast. under torch.func transforms")
@pytest.mark.parametrize("kind, context_features", CASES)
def test_torch_func_transforms(kind, context_features, device):
    model = make_model(kind, 6, context_features, device=device)
    x, context = random_binary(4, 6, device=device), make_context(context_features, 4, device=device)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters, x, context):
        arguments = (x,) if context is None else (x, context)
        logits = torch.func.functional_call(model, parameters, arguments)
        return -model.head.log_prob(logits, x).sum()

    dims = (None, 0, None if context is None else 0)
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=dims)(parameters, x, context)
    for row in range(4):
        model.zero_grad()
        model.log_prob(x[row], None if context is None else context[row]).neg().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(per_sample[name][row], parameter.grad)


@pytest.mark.parametrize("kind, context_features", CASES)
def test_autocast_keeps_log_prob_in_float32(kind, context_features, device):
    model = make_model(kind, 15, context_features, device=device, dtype=torch.float32)
    x = random_binary(4, 15, device=device, dtype=torch.float32)
    context = make_context(context_features, 4, device=device, dtype=torch.float32)
    expected = model.log_prob(x, context)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        log_prob = model.log_prob(x, context)
        assert model(x, context).dtype == torch.float32
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob, expected, rtol=0.05, atol=0.1)
    log_prob.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_context_of_the_dtype_of_autocast(kind, autocast, device):
    """A network before the model gives it; so may x be."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        model = make_model(kind, 5, 3, device=device, dtype=dtype)
        encoder = torch.nn.Linear(2, 3, device=device)
        x = random_binary(4, 5, device=device, dtype=torch.float32)
        with torch.autocast(device.type, dtype=autocast):
            context = encoder(torch.randn(4, 2, device=device))
            context.retain_grad()
            assert context.dtype == autocast
            log_prob = model.log_prob(x.to(autocast), context)
            expected = model.log_prob(x.bool(), context.to(dtype))
            assert torch.equal(log_prob, expected) and log_prob.dtype == model.compute_dtype
            assert torch.equal(model(x.to(autocast), context), model(x.bool(), context.to(dtype)))
            assert torch.equal(model.sample(2, context, seed=1), model.sample(2, context.to(dtype), seed=1))
            steps, wanted = model.begin(context=context), model.begin(context=context.to(dtype))
            assert torch.equal(steps.parameters, wanted.parameters)
            value = x[:, steps.variable]
            assert torch.equal(
                model.next(steps, value.to(autocast)).parameters, model.next(wanted, value.bool()).parameters
            )
            given, known = x.to(autocast), torch.ones_like(x, dtype=torch.bool)
            assert torch.equal(model.sample((), context, given=given, known=known), x.to(model.compute_dtype))
            assert torch.equal(model.distribution(context).log_prob(x.bool()), expected)
        log_prob.sum().backward()
        assert context.grad.dtype == autocast and bool(context.grad.any())
        assert encoder.weight.grad.dtype == torch.float32 and bool(encoder.weight.grad.any())
        if dtype != autocast:
            with pytest.raises(
                ValueError, match=f"context must be bool, integer or of the model's dtype, .*{autocast}"
            ):
                model.log_prob(x.bool(), context.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_goes_on_where_it_was_interrupted(kind, device, monkeypatch):
    model = make_model(kind, (2, 3), device=device)
    whole, log_prob = model.sample(5, seed=3, return_log_prob=True)
    sampling = model.sampling(5, seed=3)
    sampling.advance(2)
    sampler = sampling._sampler

    def interrupted(*arguments, **options):
        sampler.step(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "_sampler", dataclasses.replace(sampler, step=interrupted))
        with pytest.raises(KeyboardInterrupt):
            sampling.advance(3)
    assert sampling.position == 2 and not sampling.done
    sampling.advance(1)
    sampling.advance()
    assert sampling.done and torch.equal(sampling.samples, whole)
    torch.testing.assert_close(sampling.log_prob, log_prob)
    sampling.advance(4)
    assert torch.equal(sampling.samples, whole)
    with pytest.raises(ValueError, match="Sampling: positions must be an integer >= 0 or None, got -1"):
        sampling.advance(-1)
