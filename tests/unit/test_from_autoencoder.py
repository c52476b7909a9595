"""MADE.from_autoencoder: the parameters are those of the autoencoder with its weights masked, or it is refused."""

import pytest
import torch
from model_cases import all_binary
from torch import nn

from ar_fast import heads, models, orderings
from ar_fast.models import MADE

ACTIVATIONS = [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus, nn.SiLU, nn.GELU, nn.LeakyReLU]


def autoencoder(inputs, hidden_features, outputs, activation=nn.Tanh, bias=True):
    torch.manual_seed(1)
    sizes, parts = [inputs, *hidden_features], []
    for below, own in zip(sizes, hidden_features, strict=False):
        parts += [nn.Linear(below, own, bias=bias), activation()]
    return nn.Sequential(*parts, nn.Linear(sizes[-1], outputs, bias=bias)).double()


def masked_by_hand(module, degrees, inputs, outputs, order):
    """module with W * M: degrees of its units as it has them, inputs and outputs of each variable, by variable."""
    position = torch.as_tensor(order).argsort()
    chain = [
        (position + 1).repeat_interleave(inputs),
        *map(torch.as_tensor, degrees),
        position.repeat_interleave(outputs),
    ]
    linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
    with torch.no_grad():
        for linear, below, own in zip(linears, chain, chain[1:], strict=False):
            linear.weight *= below <= own[:, None]
    return module


@torch.no_grad()
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_parameters_are_those_of_the_masked_autoencoder(activation):
    module = autoencoder(6, [9, 13], 6, activation)
    model = MADE.from_autoencoder(module, 6)
    want = masked_by_hand(module, model.degrees, torch.ones(6).long(), torch.ones(6).long(), range(6))
    x = all_binary(6).double()
    torch.testing.assert_close(model(x).squeeze(-1), want(x))
    assert abs(model.log_prob(x).exp().sum().item() - 1) < 1e-12


HEADS = [heads.Bernoulli(), heads.Categorical(4), heads.Categorical([2, 5, 3, 3, 2, 4]), heads.GaussianMixture(3)]


@torch.no_grad()
@pytest.mark.parametrize("masks", [{}, {"n_masks": 3, "n_orders": 2}], ids=str)
@pytest.mark.parametrize("degrees", ["given", "random"])
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_orders_heads_degrees_and_masks(head, degrees, masks):
    order = orderings.random(6, seed=2)
    counts = head.counts(6)
    inputs, outputs = torch.tensor(head.inputs(6)), torch.tensor([counts] * 6 if isinstance(counts, int) else counts)
    given = [torch.randint(1, 6, (9,)), torch.randint(0, 6, (13,))]
    for index in range(masks.get("n_masks", 1)):
        module = autoencoder(int(inputs.sum()), [9, 13], int(outputs.sum()))
        model = MADE.from_autoencoder(
            module, 6, head=head, order=order, degrees=given if degrees == "given" else degrees, **masks
        ).use_mask(index)
        x = model.sample(20, seed=1)
        columns = [
            (x[:, v : v + 1] == torch.arange(count)).double() if count > 1 else x[:, v : v + 1].double()
            for v, count in enumerate(inputs.tolist())
        ]
        of_units = given if degrees == "given" else model.degrees
        want = masked_by_hand(module, of_units, inputs, outputs, model.order)
        torch.testing.assert_close(model(x).reshape(20, -1), want(torch.cat(columns, 1)))


def test_what_was_changed_is_said():
    module = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(6, 4, bias=False), nn.ELU()),
        nn.Dropout(0.5).eval(),
        nn.Linear(4, 6),
        nn.Sigmoid(),
    )
    model = MADE.from_autoencoder(module, (2, 3), degrees=[[3, 1, 2, 1]])
    assert model.changes == [
        "module[0], a Flatten, was left out: the model takes events in their shape.",
        "module[1][0] had no bias and has one of zeros.",
        "module[2], a Dropout in eval mode, was left out: it does nothing there.",
        "Of the 24 weights of layer 0, 7 have an effect.",
        "Of the 24 weights of layer 1, 17 have an effect.",
        "The units of hidden layer 0 have degrees 1 ... 3, and are sorted by them.",
        "The last Sigmoid became the head, whose parameters are logits.",
    ]
    assert bool((model.layers[0].bias == 0).all())
    assert torch.equal(model.layers[0].weight, module[1][0].weight[torch.tensor([1, 3, 2, 0])])
    assert model.event_shape == (2, 3) and models.MADE(3, [4]).changes is None


def test_parameters_are_copies():
    module = autoencoder(5, [7], 5).float()
    model = MADE.from_autoencoder(module, 5)
    assert model.dtype == torch.float32 and all(parameter.requires_grad for parameter in model.parameters())
    before = model.layers[0].weight.detach().clone()
    with torch.no_grad():
        module[0].weight.zero_()
    assert torch.equal(model.layers[0].weight, before)
    model.log_prob(torch.ones(3, 5)).sum().backward()
    assert model.layers[0].weight.grad is not None and module[0].weight.grad is None


def sequence(*parts):
    return lambda: nn.Sequential(*(part() for part in parts))


def linear(inputs, outputs, **options):
    return lambda: nn.Linear(inputs, outputs, **options)


REFUSED = {
    "module must be an nn.Sequential, got Linear": linear(5, 5),
    r"module\[1\] must be Linear, Flatten, Dropout or one of ReLU, .*, got BatchNorm1d": sequence(
        linear(5, 4), lambda: nn.BatchNorm1d(4), linear(4, 5)
    ),
    r"module\[0\] must be Linear, .*, got Bilinear": sequence(lambda: nn.Bilinear(5, 4, 3)),
    "module must have two or more Linear layers, got 1": sequence(linear(5, 5)),
    "module must have two or more Linear layers, got 0": sequence(nn.Flatten),
    r"there must be one activation before module\[1\], got 0": sequence(linear(5, 4), linear(4, 5)),
    r"there must be one activation before module\[3\], got 2": sequence(linear(5, 4), nn.ReLU, nn.ReLU, linear(4, 5)),
    "all activations must be the same, got relu and tanh": sequence(
        linear(5, 4), nn.ReLU, linear(4, 4), nn.Tanh, linear(4, 5)
    ),
    r"module\[1\], ELU, must have alpha = 1.0, got 2.0": sequence(linear(5, 4), lambda: nn.ELU(2.0), linear(4, 5)),
    r"module\[1\], LeakyReLU, must have negative_slope = 0.01, got 0.2": sequence(
        linear(5, 4), lambda: nn.LeakyReLU(0.2), linear(4, 5)
    ),
    r"module\[1\], GELU, must have approximate = 'none', got 'tanh'": sequence(
        linear(5, 4), lambda: nn.GELU("tanh"), linear(4, 5)
    ),
    r"module\[1\], Softplus, must have beta = 1.0, got 2": sequence(linear(5, 4), lambda: nn.Softplus(2), linear(4, 5)),
    "module must end with a Linear, or with one Sigmoid after it, got Tanh there": sequence(
        linear(5, 4), nn.Tanh, linear(4, 5), nn.Tanh
    ),
    "module must end with a Linear, or with one Sigmoid after it, got Sigmoid, Sigmoid there": sequence(
        linear(5, 4), nn.Tanh, linear(4, 5), nn.Sigmoid, nn.Sigmoid
    ),
    r"module\[2\], a Dropout, must be in eval mode": sequence(linear(5, 4), nn.ReLU, nn.Dropout, linear(4, 5)),
    r"module\[2\] must take the 4 outputs of the layer before, got 3 inputs": sequence(
        linear(5, 4), nn.ReLU, linear(3, 5)
    ),
    r"module\[2\] must have the dtype and device of the first layer, torch.float32 on cpu, got torch.float64": sequence(
        linear(5, 4), nn.ReLU, linear(4, 5, dtype=torch.float64)
    ),
    r"module\[0\] must be float32, float64, bfloat16 or float16, got torch.complex64": sequence(
        linear(5, 4, dtype=torch.complex64), nn.ReLU, linear(4, 5)
    ),
    r"the first layer must have 5 inputs for 5 variables with head Bernoulli\(\), got 6": sequence(
        linear(6, 4), nn.ReLU, linear(4, 5)
    ),
    r"the last layer must have 5 outputs for 5 variables with head Bernoulli\(\), got 10": sequence(
        linear(5, 4), nn.ReLU, linear(4, 10)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_done_is_refused(message):
    with pytest.raises(ValueError, match=f"MADE.from_autoencoder: {message}"):
        MADE.from_autoencoder(REFUSED[message](), 5)


def test_a_sigmoid_needs_a_bernoulli_head():
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 15), nn.Sigmoid())
    with pytest.raises(ValueError, match=r"MADE\.from_autoencoder: a last Sigmoid needs head Bernoulli, got Gaussian"):
        MADE.from_autoencoder(module, 5, head=heads.GaussianMixture(1))
