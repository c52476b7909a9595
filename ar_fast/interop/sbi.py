"""sbi: density estimators that are accelerated before they are trained. accelerate takes posteriors too."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .acceleration import accelerate
from .attaching import attached

__all__ = ["builder"]


def builder(
    model: str = "maf", *, likelihood: bool = False, fused_adam: bool = True, **arguments: Any
) -> Callable[[Tensor, Tensor], nn.Module]:
    """What builds sbi's density estimator, accelerated, for ``NPE(prior, density_estimator=builder("maf"))``.

    It trains on the accelerated layers, and the posterior that ``build_posterior`` makes of it is accelerated too.
    sbi's Adam would take longer for the fifty and more small parameters of a flow than the flow itself, so an Adam of
    its parameters on the CPU gets the option ``fused=True`` at its first step, where neither ``fused`` nor ``foreach``
    was given: torch's own implementation in one call, the same up to rounding.

    Args:
        model: the name of one of sbi's estimators with an autoregressive flow: "maf", "maf_rqs", "zuko_maf" and so on.
        likelihood: for NLE, whose estimator is a density of the data given the parameters, not the reverse.
        fused_adam: whether Adam gets that option; a hook of torch for the steps of all optimizers does it, which is
            there for as long as the estimator.
        arguments: as of sbi's ``posterior_nn``, or with ``likelihood`` of ``likelihood_nn``.

    Returns:
        A function of parameters (B, ...) and data (B, ...) that returns the estimator. It raises ValueError if nothing
        in the estimator can be accelerated.
    """
    from sbi.neural_nets import likelihood_nn, posterior_nn

    build = (likelihood_nn if likelihood else posterior_nn)(model=model, **arguments)

    def accelerated(theta: Tensor, x: Tensor) -> nn.Module:
        estimator = accelerate(build(theta, x))
        if fused_adam:
            _fuse_adam(estimator)
        return estimator

    return accelerated


def _fuse_adam(estimator: nn.Module) -> None:
    """Sets the option ``fused`` of an Adam that is to train all of an estimator's parameters, before its first step."""
    own = weakref.ref(estimator)

    def before_step(optimizer: torch.optim.Optimizer, arguments: Any, named: Any) -> None:
        # Most optimizers that step are another model's, or were seen before: they must lose no time here.
        if type(optimizer) is not torch.optim.Adam or optimizer.state:
            return
        module = own()
        if module is None or not attached(module):
            return
        parameters = {id(parameter) for parameter in module.parameters()}
        for group in optimizer.param_groups:
            if _may_fuse(group) and all(id(parameter) in parameters for parameter in group["params"]):
                group["fused"] = True

    handle = register_optimizer_step_pre_hook(before_step)
    weakref.finalize(estimator, handle.remove)


def _may_fuse(group: dict[str, Any]) -> bool:
    """Whether a group of Adam's parameters is on the CPU and has none of the options that decide between Adam's
    implementations, or that the fused one has not."""
    if any(group[name] is not None for name in ("fused", "foreach")) or group["differentiable"] or group["capturable"]:
        return False
    return all(own.device.type == "cpu" and own.is_floating_point() for own in group["params"])
