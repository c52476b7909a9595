"""Estimators of interop.sbi.builder: an Adam of their parameters becomes torch's fused one, no other optimizer does."""

import gc

import pytest
import torch
from torch.optim import optimizer as of_torch

import ar_fast
from ar_fast.interop.sbi import _fuse_adam


class MaskedLinear(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 2)
        self.register_buffer("mask", torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight * self.mask, self.bias)


def estimator():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), MaskedLinear())
    _fuse_adam(ar_fast.accelerate(module))
    return module


def step(module, optimizer):
    optimizer.zero_grad()
    module(torch.ones(5, 3)).square().sum().backward()
    optimizer.step()
    return [group.get("fused") for group in optimizer.param_groups]


def test_the_first_step_fuses_and_gives_the_same_weights():
    made = [estimator() for _ in range(2)]
    made[1].load_state_dict(made[0].state_dict())
    fused, plain = (torch.optim.Adam(made[0].parameters()), torch.optim.Adam(made[1].parameters(), fused=False))
    for _ in range(20):
        assert step(made[0], fused) == [True]
        assert step(made[1], plain) == [False]
    for own, other in zip(made[0].parameters(), made[1].parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)
    # Its state goes to an optimizer that is not fused, and back.
    plain.load_state_dict(fused.state_dict())
    assert step(made[1], plain) == [True]


@pytest.mark.parametrize(
    ("options", "after"),
    [
        ({"fused": False}, False),
        ({"foreach": True}, None),
        ({"foreach": False}, None),
        ({"differentiable": True}, None),
        ({"capturable": True}, None),
    ],
)
def test_options_that_were_given_stay(options, after):
    optimizer = torch.optim.Adam(estimator().parameters(), **options)
    # Some of these steps run on a GPU only, so the hooks are called alone.
    for hook in of_torch._global_optimizer_pre_hooks.values():
        hook(optimizer, (), {})
    assert optimizer.param_groups[0]["fused"] is after


def test_other_optimizers_stay():
    module, other = estimator(), torch.nn.Linear(3, 2)
    mixed = torch.optim.Adam([*module.parameters(), *other.parameters()])
    for own in (torch.optim.Adam(other.parameters()), mixed, torch.optim.AdamW(module.parameters())):
        assert step(module, own) == [None]
    two = torch.optim.Adam([{"params": other.parameters()}, {"params": module.parameters()}])
    assert step(module, two) == [None, True]
    assert step(module, torch.optim.SGD(module.parameters(), 0.1)) == [None]
    ar_fast.restore(module)
    assert step(module, torch.optim.Adam(module.parameters())) == [None]


def test_the_hook_goes_with_the_estimator():
    gc.collect()
    before = len(of_torch._global_optimizer_pre_hooks)
    module = estimator()
    assert len(of_torch._global_optimizer_pre_hooks) == before + 1
    del module
    gc.collect()
    assert len(of_torch._global_optimizer_pre_hooks) == before
