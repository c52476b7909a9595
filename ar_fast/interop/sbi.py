"""sbi: density estimators that are accelerated before they are trained. accelerate takes posteriors too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .acceleration import accelerate

__all__ = ["builder"]


def builder(model: str = "maf", *, likelihood: bool = False, **arguments: Any) -> Callable[[Tensor, Tensor], nn.Module]:
    """What builds sbi's density estimator, accelerated, for ``NPE(prior, density_estimator=builder("maf"))``.

    It trains on the accelerated layers, and the posterior that ``build_posterior`` makes of it is accelerated too.

    Args:
        model: the name of one of sbi's estimators with an autoregressive flow: "maf", "maf_rqs", "zuko_maf" and so on.
        likelihood: for NLE, whose estimator is a density of the data given the parameters, not the reverse.
        arguments: as of sbi's ``posterior_nn``, or with ``likelihood`` of ``likelihood_nn``.

    Returns:
        A function of parameters (B, ...) and data (B, ...) that returns the estimator. It raises ValueError if nothing
        in the estimator can be accelerated.
    """
    from sbi.neural_nets import likelihood_nn, posterior_nn

    build = (likelihood_nn if likelihood else posterior_nn)(model=model, **arguments)

    def accelerated(theta: Tensor, x: Tensor) -> nn.Module:
        return accelerate(build(theta, x))

    return accelerated
