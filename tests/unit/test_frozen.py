"""ar_fast.frozen: what is kept of weights, that every change of them is seen, and that nothing is kept outside."""

import copy
import pickle

import pytest
import torch
from masked_cases import KINDS, make_mask

import ar_fast
from ar_fast import Mask, heads, models
from ar_fast.nn import MaskedLinear

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def layer_of(kind, *, inputs=37, outputs=29, dtype=torch.float64, bias=True, device="cpu"):
    torch.manual_seed(3)
    layer = MaskedLinear(inputs, outputs, make_mask(kind, outputs, inputs), bias=bias, dtype=dtype, device=device)
    with torch.no_grad():
        layer.weight.masked_fill_(~layer.mask.to_dense(), torch.nan)
    return layer


def made(**options):
    torch.manual_seed(4)
    options = {"degrees": "random", "n_masks": 3, "n_orders": 2, "dtype": torch.float64} | options
    return models.MADE(7, [30, 20], **options)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_layer_gives_the_same(kind, dtype, bias, device):
    layer = layer_of(kind, dtype=dtype, bias=bias, device=device)
    for shape in ((37,), (0, 37), (5, 37), (3, 2, 37)):
        input = torch.randn(shape, dtype=torch.float64).to(device, dtype)
        expected = layer(input)
        with ar_fast.frozen(layer):
            tolerance = {} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 2e-2}
            torch.testing.assert_close(layer(input), expected, **tolerance)
            assert torch.equal(layer(input), layer(input))


@torch.no_grad()
def test_what_is_sorted_is_kept_within_the_scope_and_not_outside(monkeypatch):
    gathered = []
    original = torch.Tensor.index_select

    def counting(tensor, *arguments):
        gathered.append(tensor)
        return original(tensor, *arguments)

    monkeypatch.setattr(torch.Tensor, "index_select", counting)
    layer, input = layer_of("both"), torch.randn(5, 37, dtype=torch.float64)

    def of_the_weight():
        count = sum(tensor.shape[0] == 29 for tensor in gathered)
        gathered.clear()
        return count

    layer(input)
    assert of_the_weight() == 0 and layer._kept is None
    with ar_fast.frozen(torch.nn.Sequential(layer)), ar_fast.frozen(layer):
        layer(input)
        assert of_the_weight() == 2
        layer(input)
        assert of_the_weight() == 0
    assert layer._kept is None


def test_the_scope_ends_with_an_exception():
    layer = layer_of("both")
    with pytest.raises(KeyError), ar_fast.frozen(layer):
        raise KeyError
    assert layer._kept is None


def test_gradients_flow_within_the_scope():
    layer, input = layer_of("both"), torch.randn(5, 37, dtype=torch.float64)
    with ar_fast.frozen(layer):
        layer(input).sum().backward()
    assert layer.weight.grad is not None and bool((layer.weight.grad != 0).any())


CHANGES = {
    "optimizer": lambda module: step(module),
    "copy_": lambda module: parameter_of(module).copy_(parameter_of(module) + 1),
    "in place": lambda module: parameter_of(module).mul_(2),
    "load_state_dict": lambda module: module.load_state_dict(
        {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in module.state_dict().items()}
    ),
    "another parameter": lambda module: replace(module),
}


def parameter_of(module):
    return next(module.parameters())


def step(module):
    optimizer = torch.optim.SGD(module.parameters(), 1.0)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def replace(module):
    layer = module if isinstance(module, MaskedLinear) else module.layers[0]
    layer.weight = torch.nn.Parameter(layer.weight + 1)


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_weight_is_seen(change):
    layer, model = layer_of("both"), made()
    input, x = torch.randn(5, 37, dtype=torch.float64), torch.ones(5, 7, dtype=torch.float64)
    with ar_fast.frozen(layer), ar_fast.frozen(model):
        before, sampled = layer(input), model.sample(40, seed=1, return_log_prob=True)[1]
        for module in (layer, model):
            CHANGES[change](module)
        after, log_prob = layer(input), model.log_prob(x)
        samples = model.sample(40, seed=1, return_log_prob=True)
    torch.testing.assert_close(after, layer(input))
    torch.testing.assert_close(log_prob, model.log_prob(x))
    for within, outside in zip(samples, model.sample(40, seed=1, return_log_prob=True), strict=True):
        assert torch.equal(within, outside)
    assert not torch.equal(before, after) and not torch.equal(sampled, samples[1])


@torch.no_grad()
def test_another_mask_is_seen():
    model, x = made(), torch.ones(5, 7, dtype=torch.float64)
    expected = [(model.use_mask(k).sample(20, seed=1), model.log_prob(x)) for k in range(3)]
    with ar_fast.frozen(model):
        for k in (0, 1, 1, 2, 0):
            assert torch.equal(model.use_mask(k).sample(20, seed=1), expected[k][0])
            assert torch.equal(model.sample(20, seed=1), expected[k][0])
            torch.testing.assert_close(model.log_prob(x), expected[k][1])
        other = model.with_mask(1)
        assert torch.equal(other.sample(20, seed=1), expected[1][0])
        torch.testing.assert_close(other.log_prob(x), expected[1][1])
        torch.testing.assert_close(copy.deepcopy(model).log_prob(x), expected[0][1])


@torch.no_grad()
def test_the_sampler_gathers_once(monkeypatch):
    model, made_of = made(), []
    original = models.MADE._sorted
    monkeypatch.setattr(models.MADE, "_sorted", lambda self: made_of.append(self) or original(self))
    with ar_fast.frozen(model):
        assert torch.equal(model.sample(5, seed=1), model.sample(5, seed=1))
    assert len(made_of) == 1
    model.sample(5, seed=1)
    assert len(made_of) == 2 and model._kept is None


@torch.no_grad()
@pytest.mark.parametrize("head", [heads.Bernoulli(), heads.Categorical(3), heads.GaussianMixture(2)])
def test_a_deep_nade_gathers_what_it_draws_with_once(monkeypatch, head):
    model, made_of = models.DeepNADE(7, [5], head=head, dtype=torch.float64), []
    other = model.in_order(torch.randperm(7))
    known = torch.arange(7) < 3
    given = model.sample(4, seed=3)

    def drawn():
        own = [each.sample(4, seed=1, return_log_prob=True) for each in (model, model, other, model)]
        own.append(model.sample(4, given=given, known=known, seed=1, return_log_prob=True))
        return [tensor for pair in own for tensor in pair]

    expected = drawn()
    original = models.DeepNADE._sampled_nade
    monkeypatch.setattr(models.DeepNADE, "_sampled_nade", lambda self, *a: made_of.append(a) or original(self, *a))
    with ar_fast.frozen(model):
        for own, outside in zip(drawn(), expected, strict=True):
            assert torch.equal(own, outside)
        assert len(made_of) == 3
        for parameter in model.parameters():
            parameter.neg_()
        within = drawn()
    assert all(map(torch.equal, within, drawn())) and not all(map(torch.equal, within, expected))


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_made_in_the_scope_does_not_stay_frozen(copied):
    layer = MaskedLinear(4, 3, Mask.from_degrees([2, 1, 3, 1], [3, 1, 2]))
    x = torch.ones(2, 4)
    with ar_fast.frozen(layer), torch.no_grad():
        layer(x)
        other = copied(layer)
        other(x)
    with torch.no_grad():
        # A change that a frozen layer does not see.
        other.weight.data.fill_(1.0)
        expected = torch.nn.functional.linear(x, layer.mask.to_dense().float(), other.bias)
        torch.testing.assert_close(other(x), expected)
    # It can be frozen in a scope of its own.
    with ar_fast.frozen(other), torch.no_grad():
        other(x)
        assert other._kept is not None and other._kept._made_of
    assert other._kept is None


def test_copies_of_a_frozen_model_draw_what_the_model_draws():
    model = models.MADE(6, [20], degrees="random", n_masks=2)
    with ar_fast.frozen(model):
        expected = model.sample(3, seed=0)
        other = copy.deepcopy(model)
    assert all(part._kept is None for part in other.modules() if hasattr(type(part), "_kept"))
    assert torch.equal(other.sample(3, seed=0), expected)
