"""The CPU kernels' activations, how far they are from float64 at every instruction set; and the gradient's memory."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import available_isas, isa

from ar_fast import functional

ISAS = pytest.mark.parametrize("name", available_isas())


def grid():
    return torch.cat([torch.linspace(-87, 100, 200_001), torch.logspace(-20, 0, 5001), -torch.logspace(-20, 0, 5001)])


def activations(values, activation):
    """f(values), read from the state that the sampling of a MADE returns: hidden units that see no variable."""
    units = values.numel()
    ends = torch.full((1,), units, dtype=torch.int32)
    extents = [torch.zeros(units, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)]
    weights, biases = [torch.zeros(units, 1), torch.zeros(1, units)], [values, torch.zeros(1)]
    state = functional.masked_mlp_sample(
        torch.zeros(1, 1 + units), weights, biases, extents, [ends], seed=0, activation=activation
    )[2]
    return state[0, 1:]


def gradients(values, activation):
    """f'(values), from the gradient of a NADE of one variable that sums its hidden units."""
    values = values.clone().requires_grad_()
    ones = torch.ones(1, values.numel())
    functional.nade(torch.zeros(1, 1), ones, values, ones, torch.zeros(1), activation=activation).sum().backward()
    return values.grad


@ISAS
def test_sigmoid(name):
    values = grid()
    with isa(name):
        got, below = activations(values, "sigmoid"), activations(torch.linspace(-1000, -87, 9001), "sigmoid")
    want = values.double().sigmoid()
    assert ((got.double() - want).abs() / want).max() < 2e-6
    assert (below.double() - torch.linspace(-1000, -87, 9001).double().sigmoid()).abs().max() < 1e-37 + 2e-6 * 1.7e-38


@ISAS
def test_tanh(name):
    values = grid()
    with isa(name):
        got = activations(values, "tanh")
    want = values.double().tanh()
    assert ((got.double() - want).abs() / want.abs()).nan_to_num(0.0).max() < 2e-6


@ISAS
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_derivatives(name, activation):
    values = grid()
    with isa(name):
        got = gradients(values, activation)
    exact = values.double().requires_grad_()
    getattr(torch, activation)(exact).sum().backward()
    # 1 - h^2 doubles the rounding of h, which near 1 is 6e-8 for an error of one unit in the last place.
    assert (got.double() - exact.grad).abs().max() < (1e-7 if activation == "sigmoid" else 1.5e-7)


@ISAS
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_infinities_and_nan(name, activation):
    values = torch.tensor([float("inf"), -float("inf"), float("nan"), 3e38, -3e38, 0.0, -0.0] * 5)
    with isa(name):
        got = activations(values, activation)
    torch.testing.assert_close(got, getattr(torch, activation)(values), equal_nan=True)


@ISAS
def test_the_sigmoid_of_nades_state(name):
    """NADE keeps its state in units of -log2(e): beside the sigmoid's own error there is the rounding of that state."""
    values = torch.linspace(-87, 100, 401)
    units = values.numel()
    weights = torch.zeros(1, units), values, torch.eye(units), torch.zeros(units)
    with isa(name):
        got = functional.nade(torch.zeros(1, 1), *weights)[0]
    want = values.double().sigmoid()
    state_rounding = 2.0**-24 * (values.double().abs() + 1)
    assert (((got.double() - want).abs() / want) < 2e-6 + state_rounding).all()


PEAK = """
import sys, torch
from ar_fast import functional, reference

def high_water():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024

def problem(variables, hidden, batch):
    weights = [torch.randn(variables, hidden) * 0.02, torch.zeros(hidden), torch.randn(variables, hidden) * 0.02]
    x = (torch.rand(batch, variables) < 0.2).float()
    return x, [w.requires_grad_() for w in (*weights, torch.zeros(variables))]

def gradient(x, leaves):
    return torch.autograd.grad(log_prob(x, *leaves).mean(), leaves)

log_prob = {"kernel": functional, "loop": reference}[sys.argv[1]].nade_log_prob
variables, hidden, batch = map(int, sys.argv[2:])
torch.manual_seed(0)
large, small = problem(variables, hidden, batch), problem(20, hidden, 1)
gradient(*small)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = high_water()
got = gradient(*large)
print(high_water() - before, sum(g.numel() * 4 for g in got))
"""


def peak_beside_gradients(contender, variables, hidden, batch):
    """Bytes that log_prob and its gradient add to the peak of a process of their own, beside the gradients.

    It may be a little below zero: memory that the process had before is used again.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("a process's peak memory can be read and reset on Linux only")
    command = [sys.executable, "-c", PEAK, contender, *map(str, (variables, hidden, batch))]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    added, gradients = map(int, printed.split())
    assert added > gradients / 2, "the peak was not measured"
    return added - gradients


def test_the_gradient_keeps_no_tensor_of_all_states():
    """D = 5,000, H = 512, B = 64: less than 1 / 20 of one (B, D, H) tensor; the reference takes more than its own."""
    assert peak_beside_gradients("kernel", 5_000, 512, 64) < 64 * 5_000 * 512 * 4 / 20
    assert peak_beside_gradients("loop", 400, 512, 64) > 64 * 400 * 512 * 4
