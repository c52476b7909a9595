"""check_autoregressive finds what depends on what it must not see, by gradient or by perturbation, and names it."""

import math

import pytest
import torch
from model_cases import KINDS, make_model
from torch import nn
from torch.nn import functional as F

from ar_fast import check_autoregressive, heads, models, orderings


class Masked(nn.Module):
    """Two masked layers with ``outputs`` numbers per variable, those of a variable side by side, as nflows has them."""

    def __init__(self, variables=5, outputs=1, hidden=40):
        super().__init__()
        degrees = torch.arange(hidden) % (variables - 1)
        positions = torch.arange(variables)
        self.first = nn.Parameter(torch.randn(hidden, variables))
        self.second = nn.Parameter(torch.randn(outputs * variables, hidden))
        self.register_buffer("first_mask", (degrees[:, None] >= positions).float())
        self.register_buffer("second_mask", (positions.repeat_interleave(outputs)[:, None] > degrees).float())

    def forward(self, x):
        return F.linear(torch.tanh(F.linear(x, self.first * self.first_mask)), self.second * self.second_mask)


def test_a_masked_network_passes_and_lacks_nothing():
    result = check_autoregressive(Masked(), 5)
    assert result and result.violations == [] and result.missing == []
    assert "no output depends on an input that it must not see" in str(result)
    assert torch.equal(result.found, torch.ones(5, 5).tril(-1).bool())


@pytest.mark.parametrize("output, input", [(0, 0), (1, 1), (0, 4), (2, 3), (3, 4)])
def test_one_wrong_weight_is_named(output, input):
    module = Masked(outputs=2)
    leak = torch.zeros(10, 5)
    leak[2 * output + 1, input] = 1e-3
    result = check_autoregressive(lambda x: module(x) + F.linear(x, leak), 5)
    assert not result and result.violations == [(output, input)]
    assert f"output {output} depends on input {input} (gradient 0.00162, change " in str(result)
    with pytest.raises(
        ValueError, match=rf"check_autoregressive: not autoregressive: output {output} depends on input"
    ):
        check_autoregressive(lambda x: module(x) + F.linear(x, leak), 5, raises=True)


def past(x):
    """A correct map: the sum of the inputs before."""
    return F.pad(x.cumsum(1)[:, :-1], (1, 0))


def test_a_step_has_no_gradient_and_is_found_by_perturbation():
    for leak in (lambda x: (x[:, 3] > 0.2).float(), lambda x: x[:, 3].round(), lambda x: x[:, 3].detach()):
        result = check_autoregressive(lambda x, leak=leak: past(x) + leak(x)[:, None] * torch.eye(5)[1], 5)
        assert result.violations == [(1, 3)]
        assert result.gradient[1, 3] == 0 and result.change[1, 3] > 0


def test_a_gradient_without_a_change_is_found_by_gradient():
    def straight_through(x):
        return past(x) + (x - x.detach()).flip(1)

    result = check_autoregressive(straight_through, 5)
    assert result.violations == [(0, 4), (1, 3), (2, 2)]
    assert result.change[0, 4] == 0 and result.gradient[0, 4] == 1


def test_a_dependence_far_out_only_is_found():
    """A leak through a unit that is active beyond 6 only, where three events of four never come."""
    result = check_autoregressive(lambda x: past(x) + torch.relu(x.flip(1).abs() - 6), 8)
    assert set(result.violations) & {(i, 7 - i) for i in range(4)}


def test_nan():
    x = torch.rand(4, 5) + 0.1

    def poisoned(x):
        return past(x) + torch.where(x[:, 4:] > 1.5, math.nan, 0.0) * torch.eye(5)[2]

    with pytest.raises(ValueError, match="outputs must be finite"):
        check_autoregressive(poisoned, 5, x=x + torch.eye(5)[4] * 2)

    # The derivative is NaN where the value is 0, as where a mask multiplies an infinite slope.
    def slope(x):
        return past(x) + 0 * (x[:, 4:] - x[:, 4:].detach()).abs().sqrt() * torch.eye(5)[2]

    result = check_autoregressive(slope, 5, x=x)
    assert (2, 4) in result.violations and result.gradient[2, 4].isnan() and result.change[2, 4] == 0
    assert "output 2 depends on input 4 (gradient nan, change 0)" in str(result)


def test_a_value_that_becomes_nan_is_a_change():
    x = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])

    def module(x):
        # NaN for the second input of an event together with the first input of the other one.
        return past(x) + torch.where((x[:, :1] < 1) & (x[:, 1:2] > 2), math.nan, 0.0) * torch.eye(3)[0]

    result = check_autoregressive(module, 3, x=x)
    assert (0, 1) in result.violations and result.change[0, 1] == math.inf


@pytest.mark.parametrize("layout", ["(N, D)", "(N, D, K)", "(N, K D)", "(N, K, D)", "tuple", "dictionary", "nested"])
def test_layouts(layout):
    """The same leak, output 1 sees input 2 through its second parameter, whatever the shape of the output."""
    module, leak = Masked(outputs=3), torch.zeros(5, 3, 5)
    leak[1, 1, 2] = 1

    def three(x):
        return (module(x) + F.linear(x, leak.flatten(0, 1))).unflatten(1, (5, 3))

    forms = {
        "(N, D)": lambda y: y[..., 1],
        "(N, D, K)": lambda y: y,
        "(N, K D)": lambda y: y.flatten(1),
        "(N, K, D)": lambda y: y.transpose(1, 2),
        "tuple": lambda y: y.unbind(2),
        "dictionary": lambda y: {"shift": y[..., 0], "scales": y[..., 1:]},
        "nested": lambda y: [(y[..., 0], y[..., 1:].flatten(1))],
    }
    assert check_autoregressive(lambda x: forms[layout](three(x)), 5).violations == [(1, 2)]


def test_variables_side_by_side_are_told_by_outputs():
    """As in the original MADE, where the K outputs of a variable lie D apart."""
    module = Masked(outputs=2)

    def tiled(x):
        return module(x).unflatten(1, (5, 2)).transpose(1, 2).flatten(1)

    assert not check_autoregressive(tiled, 5)
    assert check_autoregressive(tiled, 5, outputs=torch.arange(5).repeat(2))


def test_order_and_strictness():
    order = orderings.random(6, seed=3)
    inner = Masked(6)

    def module(x):
        return inner(x[:, order])[:, order.argsort()]

    assert check_autoregressive(module, 6, order=order)
    assert not check_autoregressive(module, 6)
    assert check_autoregressive(module, 6, order=order, strict=False)

    def transform(x):
        return x * inner(x).exp()

    assert check_autoregressive(transform, 6, strict=False)
    result = check_autoregressive(transform, 6)
    assert result.violations == [(i, i) for i in range(6)]


class CausalConvolution(nn.Conv2d):
    """A masked convolution, as the first layer of a PixelCNN; ``shift`` uncovers one weight too many."""

    def __init__(self, outputs, shift=0):
        super().__init__(1, outputs, 3, padding=1)
        mask = torch.zeros(3, 3)
        mask.flatten()[: 4 + shift] = 1
        self.register_buffer("mask", mask)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


def test_images_and_their_places():
    event = (1, 3, 4)
    result = check_autoregressive(
        CausalConvolution(8).double(),
        event,
        x=torch.randn(3, *event).double(),
        tolerance=1e-12,
        outputs=torch.arange(12).reshape(3, 4).expand(8, 3, 4),
    )
    assert result and result.missing
    broken = CausalConvolution(1, shift=1)
    assert "output (0, 0, 0) depends on input (0, 0, 0)" in str(check_autoregressive(broken, event, tolerance=1e-6))
    result = check_autoregressive(broken, event, tolerance=1e-6, strict=False)
    assert result


def test_a_context_is_passed_on():
    def module(x, context):
        assert context.shape == (x.shape[0], 2)
        return past(x) * context[:, :1]

    result = check_autoregressive(module, 4, context=torch.tensor([2.0, 1.0]))
    assert result and result.missing == []
    assert check_autoregressive(module, 4, context=torch.zeros(2)).missing


def test_outputs_that_do_not_see_the_context_are_named():
    def blind(x, context):
        """Variable 0 is blind; 1 sees the context by a step, 2 by a gradient without a change, 3 and 4 smoothly."""
        value = context[:, :1]
        seen = [0 * value, (value > 0.3).float(), value - value.detach(), value, value * context[:, 1:]]
        return past(x) + torch.cat(seen, 1)

    result = check_autoregressive(blind, 5, context=torch.zeros(2))
    assert result and result.without_context == [0] and result.context.shape == (5,)
    assert str(result).endswith("; the context is not seen by output 0")
    result = check_autoregressive(lambda x, context: past(x.flatten(1)), (2, 4), context=torch.zeros(2))
    assert result and result.without_context == list(range(8))
    assert "the context is not seen by output (0, 0); output (0, 1); " in str(result) and "and 3 more" in str(result)
    result = check_autoregressive(lambda x, context: x + context, 1, context=torch.zeros(1))
    assert not result and result.without_context == []
    assert check_autoregressive(past, 5).without_context == [] and check_autoregressive(past, 5).context is None
    categories = torch.tensor([1, 0])
    result = check_autoregressive(lambda x, context: past(x) + context[:, :1], 5, context=categories)
    assert result and result.context is None, "a context of categories cannot be moved"


def test_dropout_and_batch_norm_are_in_evaluation_mode_and_put_back():
    module = nn.Sequential(Masked(), nn.BatchNorm1d(5), nn.Dropout(0.5))
    module[1].eval()
    assert check_autoregressive(module, 5)
    assert module.training and module[2].training and not module[1].training
    assert not module[1].running_mean.any()


def test_integer_inputs_have_no_gradient():
    table = torch.randn(5, 7, 3)

    def module(x):
        assert not x.is_floating_point()
        rows = table[torch.arange(5), x]
        return F.pad(rows.cumsum(1)[:, :-1], (0, 0, 1, 0)).tanh()

    x = torch.stack([torch.randperm(7)[:5] for _ in range(4)])
    result = check_autoregressive(module, 5, x=x)
    assert result and result.gradient is None and "gradient" not in str(result)
    assert check_autoregressive(lambda x: module(x.flip(1)), 5, x=x).violations


MODELS = {
    "NADE": lambda: models.NADE((2, 3), 9, activation="tanh", order=[5, 3, 1, 0, 2, 4]),
    "NADE, categories": lambda: models.NADE(4, 9, head=heads.Categorical([2, 5, 3, 2])),
    "NADE, levels": lambda: models.NADE(4, 9, activation="tanh", head=heads.LogisticMixture(2, 256)),
    "RNADE": lambda: models.RNADE(4, 30),
    "MADE": lambda: models.MADE((2, 2), [31, 27], activation="tanh", context_features=3, order=[3, 2, 1, 0]),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_our_models(name, dtype):
    if dtype == torch.bfloat16:
        torch.manual_seed(0)  # of one model in eighty, 8 bits round a weak dependence away
    model = MODELS[name]().to(dtype)
    context = torch.randn(3, dtype=dtype) if model.context_features else None
    result = check_autoregressive(model, model.event_shape, context=context, raises=True)
    assert result.missing == [] and result.without_context == []


@pytest.mark.parametrize("kind", KINDS)
def test_our_models_see_the_context(kind):
    model = make_model(kind, 5, 3, order=None)
    assert check_autoregressive(model, 5, context=torch.zeros(3, dtype=torch.float64)).without_context == []
    weight = model.rnn.weight_ih_l0[:, 1:] if isinstance(model, models.RNN) else model.context_weight
    weight.data.zero_()
    result = check_autoregressive(model, 5, context=torch.zeros(3, dtype=torch.float64))
    assert result.without_context == [0, 1, 2, 3, 4]


def test_a_broken_model_of_ours_is_found():
    model = models.MADE(5, [20], activation="tanh")
    model.layers[1].mask_extents[2:] = 20
    assert check_autoregressive(model, 5).violations == [(2, 2), (2, 3), (3, 3)]


@pytest.mark.parametrize("library", ["zuko", "nflows", "pyro"])
def test_conditioners_of_flow_libraries(library):
    if library == "zuko":
        zuko = pytest.importorskip("zuko", reason="the library is not installed")
        transform = zuko.flows.MaskedAutoregressiveTransform(5, order=torch.tensor([4, 2, 0, 1, 3]))
        module, order = transform.hyper, torch.tensor([4, 2, 0, 1, 3]).argsort()
    elif library == "nflows":
        made = pytest.importorskip("nflows.transforms.made", reason="the library is not installed")
        module, order = made.MADE(5, 20, output_multiplier=3), None
    else:
        network = pytest.importorskip("pyro.nn.auto_reg_nn", reason="the library is not installed")
        order = torch.tensor([4, 2, 0, 1, 3])
        module = network.AutoRegressiveNN(5, [20], param_dims=(1, 3), permutation=order)
    assert check_autoregressive(module, 5, order=order, raises=True)
    wrong = orderings.reversed(5) if order is None else order.flip(0)
    assert not check_autoregressive(module, 5, order=wrong)


@pytest.mark.parametrize(
    "message, options",
    [
        (r"x must have shape \(N, 3\) with N >= 2, got \(1, 3\)", {"x": torch.zeros(1, 3)}),
        (r"x must have shape \(N, 3\) with N >= 2, got \(3,\)", {"x": torch.zeros(3)}),
        (r"must be a permutation of 0 \.\.\. 2, got 2 entries", {"order": [0, 1]}),
        (r"outputs must have the shape of an output, \(3,\), got \(2,\)", {"outputs": torch.zeros(2)}),
    ],
)
def test_bad_arguments(message, options):
    with pytest.raises(ValueError, match=message):
        check_autoregressive(past, 3, **options)


@pytest.mark.parametrize(
    "message, module",
    [
        (r"an output must hold some numbers for each of 3 variables, got \(4,\)", lambda x: torch.zeros(len(x), 4)),
        (r"an output must hold some numbers for each of 3 variables, got \(\)", lambda x: x.sum(1)),
        (r"outputs must have as many rows as x, 4, got \(1, 3\)", lambda x: x[:1]),
        (r"module must return tensors, got NoneType", lambda x: None),
        ("outputs must be finite", lambda x: x.log()),
        ("outputs must be the same in every call", lambda x: x + torch.rand_like(x)),
    ],
)
def test_bad_modules(message, module):
    with pytest.raises(ValueError, match=f"check_autoregressive: {message}"):
        check_autoregressive(module, 3)
