"""Conditioners of other libraries, evaluated one variable at a time."""

import accelerate_cases
import pytest
import torch
from accelerate_cases import PlainMaskedLinear, plain_network
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ar_fast.conditioners import stepping as module
from ar_fast.conditioners.implicit import gradients
from ar_fast.interop import incremental


@pytest.mark.parametrize("by_parameter", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Softsign])
def test_incremental(by_parameter, activation):
    network = plain_network(5, 16, 3, activation).double()
    if by_parameter:
        last, places = network[4], torch.arange(15).reshape(5, 3).T.flatten()
        with torch.no_grad():
            last.weight.copy_(last.weight[places])
            last.bias.copy_(last.bias[places])
            last.mask.copy_(last.mask[places])
    steps = incremental(network)
    assert steps.conditioner.by_parameter == by_parameter
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    expected = network(x).unflatten(-1, (3, 5) if by_parameter else (5, 3))
    expected = expected.transpose(-1, -2) if by_parameter else expected
    state = steps.begin((2, 3))
    while state.parameters is not None:
        assert state.parameters.shape == (2, 3, 3)
        torch.testing.assert_close(state.parameters, expected[:, :, state.variable])
        before, state = state, steps.next(state, x[:, :, state.variable])
        # The state before stays usable.
        assert steps.next(before, x[:, :, before.variable]).position == state.position
    assert state.position == 5


def test_incremental_is_differentiable():
    network = plain_network(4, 16, 2, nn.Tanh).double()
    steps = incremental(network)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    state, found = steps.begin(3), []
    while state.parameters is not None:
        found.append(state.parameters)
        state = steps.next(state, x[:, state.variable])
    wanted = [x, *network.parameters()]
    own = torch.autograd.grad(torch.cat(found, 1).sin().sum(), wanted)
    expected = torch.autograd.grad(network(x).sin().sum(), wanted)
    for grad, other in zip(own, expected, strict=True):
        torch.testing.assert_close(grad, other)


def test_incremental_computes_each_unit_once():
    """No more multiply-adds than one masked forward pass has."""
    network = plain_network(20, 60, 2)
    steps, y = incremental(network), torch.randn(7, 20)
    # The products that find the schedule are not counted.
    steps.settle()
    with FlopCounterMode(display=False) as count, torch.no_grad():
        steps.invert(y, lambda y, parameters, variables: (y - parameters[..., 0]) * parameters[..., 1].exp())
    masked = sum(int(part.mask.sum()) for part in network if isinstance(part, PlainMaskedLinear))
    assert 0 < count.get_total_flops() <= 1.1 * 2 * 7 * masked


def test_the_gradient_of_an_inverse_takes_a_few_passes():
    """One forward and one backward pass, and a sweep with the products of a masked pass; equal to autograd through the
    inverse one variable at a time."""

    def univariate(y, parameters, variables):
        return (y - parameters[..., 0]) * parameters[..., 1].exp()

    network = plain_network(20, 60, 2, nn.Tanh).double()
    steps, y = incremental(network), torch.randn(7, 20, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(7, 20, dtype=torch.float64)
    wanted = [y, *network.parameters()]
    x, _ = steps.invert(y, univariate)
    expected = torch.autograd.grad(x, wanted, grad)
    with FlopCounterMode(display=False) as count:
        found = gradients(steps, univariate, x, grad, y, None, steps.tensors(), wanted)
    for own, other in zip(found, expected, strict=True):
        assert bool((other != 0).any())
        torch.testing.assert_close(own, other)
    weights = sum(part.weight.numel() for part in network if isinstance(part, PlainMaskedLinear))
    assert 0 < count.get_total_flops() <= 4 * 2 * 7 * weights


def test_large_batches_are_inverted_in_chunks(monkeypatch):
    network = plain_network(5, 16)
    steps, y = incremental(network), torch.randn(200, 5)

    def univariate(y, parameters, variables):
        return y - parameters[..., 0]

    with torch.no_grad():
        expected = steps.invert(y, univariate)
        monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
        found = steps.invert(y, univariate)
    for own, other in zip(found, expected, strict=True):
        accelerate_cases.assert_close(own, other)


def test_incremental_refuses():
    with pytest.raises(ValueError, match="Linear is of no known form"):
        incremental(nn.Linear(3, 3))
    open_network = nn.Sequential(
        PlainMaskedLinear(torch.ones(4, 3) > 0), nn.ReLU(), PlainMaskedLinear(torch.ones(6, 4) > 0)
    )
    with pytest.raises(ValueError, match="it is not autoregressive"):
        incremental(open_network)
    softmax = plain_network(4, 16, 2, lambda: nn.Softmax(-1))
    with pytest.raises(ValueError, match="its output differs"):
        incremental(softmax)
    with pytest.raises(ValueError, match="PReLU, has parameters"):
        incremental(plain_network(4, 16, 2, nn.PReLU))
    steps = incremental(plain_network())
    with pytest.raises(ValueError, match="takes no context features, got a context of shape"):
        steps.begin(3, torch.randn(3, 2))
    state = steps.begin(3)
    with pytest.raises(ValueError, match=r"value must have shape \(3,\), got \(4,\)"):
        steps.next(state, torch.randn(4))
