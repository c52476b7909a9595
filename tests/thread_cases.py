"""Calls of the CPU ops that are large enough for threads to share, one for every way in which they are shared.

``python thread_cases.py`` runs all of them, or those that are named, on THREADS threads;
tests/build/test_cpu_races.py does so under ThreadSanitizer.
"""

import sys
from collections.abc import Callable

import torch
from masked_cases import masked_case

import ar_fast
from ar_fast import flows, functional, heads, models

THREADS = 4


def _bits(batch: int, variables: int) -> torch.Tensor:
    return torch.rand(batch, variables).lt(0.3).float()


def _density(model: models.AutoregressiveModel, x: torch.Tensor) -> None:
    """log_prob with all gradients, by x too."""
    x = x.requires_grad_() if x.is_floating_point() else x
    model.log_prob(x).sum().backward()


def _linear(
    batch: int, kind: str, algorithm: str, dtype: torch.dtype = torch.float32, inputs: int = 310, outputs: int = 200,
    every_nan: int = 0,
) -> None:  # fmt: skip
    """Forward and backward; of ``every_nan`` rows one is NaN, so that masked weights see it and its rows are mended."""
    case = masked_case(batch, inputs, outputs, kind, dtype=dtype)
    if every_nan:
        case.input[::every_nan] = torch.nan
    leaves = [tensor.requires_grad_() for tensor in (case.input, case.weight, case.bias)]
    y = functional.masked_linear(leaves[0], leaves[1], case.mask, leaves[2], algorithm=algorithm)
    torch.autograd.grad(y, leaves, torch.randn_like(y))


def _head(head: str, count: int) -> None:
    rows = 2000
    parameters, x = torch.randn(rows, 20 * count).requires_grad_(), torch.rand(rows, 20).requires_grad_()
    functional.head_log_prob(parameters, x, head=head).sum().backward()


def _transform(name: str, constants: list[float], count: int) -> None:
    x, parameters = torch.randn(1500, 16).requires_grad_(), torch.randn(1500, 16 * count).requires_grad_()
    y, log_det = functional.univariate_transform(x, parameters, name, constants)
    (y.sum() + log_det.sum()).backward()


def _offset_nade(batch: int, algorithm: str, side: int = 32) -> None:
    hidden, window = 40, 2
    taps = 2 * window * (window + 1)
    functional.offset_nade_sample(
        torch.zeros(batch, window * side + window), torch.randn(taps, hidden), torch.randn(hidden), torch.randn(1, 20),
        torch.randn(1), weights=[torch.randn(20, hidden) / 6], biases=[torch.randn(20)], grid=(side, side, 1),
        window=(window, window), seed=1, algorithm=algorithm,
    )  # fmt: skip


def _flow(hidden: int, batch: int) -> None:
    """The density of a flow and its gradients: small products, with and without transposition."""
    flow = flows.MAF(16, transforms=1, hidden_features=(hidden, hidden))
    flow.log_prob(torch.randn(batch, 16).requires_grad_()).sum().backward()


def _inverse() -> None:
    flow = flows.MAF(16, transforms=1, hidden_features=(64, 64))
    flow.rsample(700, generator=torch.Generator().manual_seed(1)).square().sum().backward()


def _compression() -> None:
    model = models.NADE(60, 20)
    ar_fast.decompress(model, ar_fast.compress(model, _bits(40, 60), chunk=1))


CASES: dict[str, Callable[[], object]] = {
    "NADE, groups of rows": lambda: _density(models.NADE(70, 90), _bits(150, 70)),
    "NADE, parts of the units": lambda: _density(models.NADE(60, 300), _bits(1, 60)),
    "NADE, segments of variables": lambda: _density(
        models.NADE(300, 90, head=heads.Categorical(2)), torch.randint(2, (2, 300))
    ),
    "NADE, categories": lambda: _density(models.NADE(40, 90, head=heads.Categorical(4)), torch.randint(4, (30, 40))),
    "NADE, sampling": lambda: models.NADE(70, 90).sample(150, seed=0),
    "RNADE, sampling": lambda: models.RNADE(40, 30, components=3).sample(30, seed=0),
    "FVSBN, sampling": lambda: models.FVSBN(150).sample(40, seed=0),
    "ARMLP, sampling": lambda: models.ARMLP(60, 20).sample(40, seed=0),
    "MADE, sampling in groups": lambda: models.MADE(60, [80, 80]).sample(100, seed=0),
    "MADE, sampling in a team": lambda: models.MADE(20, [600, 600]).sample(2, seed=0),
    "DeepNADE, sampling": lambda: models.DeepNADE(30, [100, 90]).sample(9, seed=0),
    "RNN, sampling": lambda: models.RNN(30, 70, cell="gru").sample(9, seed=0),
    "LSTM, sampling": lambda: models.RNN(30, 70, cell="lstm", num_layers=2).sample(9, seed=0),
    "OffsetNADE, rows": lambda: _offset_nade(8, "pixels", side=12),
    "OffsetNADE, wavefront": lambda: _offset_nade(2, "wavefront"),
    "OffsetNADE, wavefront of one row": lambda: _offset_nade(1, "wavefront", side=40),
    "masked_linear, few rows": lambda: _linear(5, "sorted", "fused"),
    "masked_linear, few rows, permuted": lambda: _linear(5, "both", "fused"),
    "masked_linear, products": lambda: _linear(70, "sorted", "fused"),
    "masked_linear, products, permuted": lambda: _linear(70, "both", "fused"),
    "masked_linear, products, blocks": lambda: _linear(70, "blocks", "fused"),
    "masked_linear, products, bfloat16": lambda: _linear(70, "both", "fused", torch.bfloat16),
    "masked_linear, many rows": lambda: _linear(700, "sorted", "fused"),
    "masked_linear, panels": lambda: _linear(70, "sorted", "panels"),
    "masked_linear, panels, permuted": lambda: _linear(70, "both", "panels"),
    "masked_linear, panels, bfloat16": lambda: _linear(70, "both", "panels", torch.bfloat16),
    "masked_linear, copies": lambda: _linear(70, "both", "auto", inputs=100, outputs=500),
    "masked_linear, mended": lambda: _linear(5300, "sorted", "fused", inputs=10, every_nan=50),
    "head, bernoulli": lambda: _head("bernoulli", 1),
    "head, gaussians": lambda: _head("gaussian_mixture", 9),
    "transform, affine": lambda: _transform("affine_softplus", [1e-3], 2),
    "transform, spline": lambda: _transform("spline_softplus", [-3.0, 3.0, 1e-3, 1e-3, 1e-3, 0.1], 23),
    "flow, rows": lambda: _flow(50, 900),
    "flow, columns of a gradient": lambda: _flow(70, 5000),
    "flow, inverse": _inverse,
    "compression": _compression,
}
# Of those, where a thread waits for another within a region: at barriers, or for what another has stored.
WITH_BARRIERS = ("DeepNADE, sampling", "RNN, sampling", "LSTM, sampling")
WITH_COUNTERS = ("OffsetNADE, wavefront", "OffsetNADE, wavefront of one row")


def main() -> None:
    torch.set_num_threads(THREADS)
    for name in sys.argv[1:] or CASES:
        print(f"case: {name}", file=sys.stderr, flush=True)
        torch.manual_seed(0)
        CASES[name]()


if __name__ == "__main__":
    main()
