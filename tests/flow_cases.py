"""What the tests of flows share: small flows of every kind, contexts and grids."""

import itertools

import torch
from torch import Tensor

from ar_fast.flows import MAF, Affine, Spline

#: Name -> arguments of a flow, except its sizes.
KINDS = {
    f"{'IAF' if inverse else 'MAF'} {name}": {"univariate": univariate, "inverse": inverse}
    for inverse, (name, univariate) in itertools.product(
        (False, True), (("affine", Affine()), ("spline", Spline(bins=5, bound=3.0)))
    )
}
CASES = list(itertools.product(KINDS, (0, 2)))


def make_flow(kind: str, features: int = 3, context_features: int = 0, **arguments) -> MAF:
    """A flow whose weights are larger than those that it would start from."""
    own = {"transforms": 3, "hidden_features": (14, 11), "activation": "tanh", "dtype": torch.float64, **KINDS[kind]}
    flow = MAF(features, context_features, **(own | arguments))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(1.5)
    return flow


def make_context(context_features: int, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor | None:
    return torch.randn(*batch, context_features, dtype=dtype) if context_features else None


def total_probability(log_prob, dimensions: int, bound: float = 9.0, points: int = 2001) -> tuple[Tensor, Tensor]:
    """The grid along one axis, and log_prob's integral over [-bound, bound]^dimensions by the trapezoid rule."""
    axis = torch.linspace(-bound, bound, points, dtype=torch.float64)
    x = torch.cartesian_prod(*[axis] * dimensions).reshape(-1, dimensions)
    values = log_prob(x).detach().exp().reshape([points] * dimensions)
    for _ in range(dimensions):
        values = torch.trapezoid(values, axis, dim=-1)
    return axis, values
