"""Masked linear maps over the grid of batch and layer sizes; on CUDA also a large one in bfloat16 and tf32."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ar_fast import Mask, functional

from . import data, peers
from .cases import OURS, Built, Case, Contender, against, no_grad
from .settings import Settings

PRODUCT = "F.linear(x, W * M)"
BEFOREHAND = "F.linear, masked beforehand"
PANELS = {"GEMM panels, 8": 8, "GEMM panels, 16": 16}
COMPILED = "torch.compile of F.linear(x, W * M)"

# A float64 product of every row would take longer than all the timing: the error is that of the first rows.
CHECKED_ROWS = 16

# What the large products are computed in.
LARGE_DTYPES = ["bfloat16", "tf32"]


def storage(dtype: str) -> torch.dtype:
    return torch.float32 if dtype == "tf32" else getattr(torch, dtype)


def computed_in(dtype: str, function: Callable[[], object]) -> Callable[[], object]:
    """The function as it is; for tf32 it runs with torch's leave to round float32 on CUDA."""
    if dtype != "tf32":
        return function

    def run() -> object:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return function()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return run


def staircase(in_features: int, out_features: int, permuted: bool = False) -> Mask:
    """Inputs 1 ... I, outputs spread evenly over them and sorted: half of the weights are masked.

    ``permuted``: the same mask with its rows and columns in random order, as foreign weights have it.
    """
    in_degrees = torch.arange(1, in_features + 1)
    out_degrees = (torch.arange(out_features) + 1) * in_features // (out_features + 1)
    if permuted:
        generator = torch.Generator().manual_seed(in_features * out_features)
        in_degrees = in_degrees[torch.randperm(in_features, generator=generator)]
        out_degrees = out_degrees[torch.randperm(out_features, generator=generator)]
    return Mask.from_degrees(in_degrees, out_degrees)


def _parts(size: tuple[int, int, int], device: torch.device, permuted: bool = False, dtype: str = "float32"):
    batch, in_features, out_features = size
    x = data.normal(batch, in_features, seed=batch).to(device, storage(dtype))
    weight = (data.normal(out_features, in_features, seed=9).to(device) / in_features**0.5).to(storage(dtype))
    bias = data.normal(out_features, seed=10).to(device, storage(dtype))
    mask = staircase(in_features, out_features, permuted).to(device)
    return x, weight, bias, mask, mask.to_dense().to(weight.dtype)


def _forward(size: tuple[int, int, int], settings: Settings, permuted: bool = False, dtype: str = "float32") -> Built:
    x, weight, bias, mask, dense = _parts(size, settings.device, permuted, dtype)
    masked = weight * dense
    reference = F.linear(x[:CHECKED_ROWS].double(), masked.double(), bias.double())

    def eager(function: Callable[[], Tensor]) -> Callable[[], Contender]:
        return lambda: Contender(computed_in(dtype, no_grad(function)), lambda y: (y[:CHECKED_ROWS],))

    def compiled() -> Contender:
        product = torch.compile(lambda x, weight, mask, bias: F.linear(x, weight * mask, bias), dynamic=False)
        run = no_grad(lambda: product(x, weight, dense, bias))
        with peers.compile_guard(settings.compile_seconds):
            run()
        return Contender(run, lambda y: (y[:CHECKED_ROWS],))

    makers = {
        OURS: eager(lambda: functional.masked_linear(x, weight, mask, bias)),
        PRODUCT: eager(lambda: F.linear(x, weight * dense, bias)),
        BEFOREHAND: eager(lambda: F.linear(x, masked, bias)),
        COMPILED: compiled,
    }
    if not permuted:  # panels need a staircase in place
        for name, count in PANELS.items():
            makers[name] = eager(partial(peers.Panels(weight, bias, mask.extents, count).run, x))
    return Built(makers, against([reference]))


def _training(
    size: tuple[int, int, int], settings: Settings, dtype: str = "float32", checked_rows: int | None = None
) -> Built:
    x, weight, bias, mask, dense = _parts(size, settings.device, dtype=dtype)
    grad = data.normal(size[0], size[2], seed=11).to(settings.device, storage(dtype))

    def gradients(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        return computed_in(dtype, lambda: torch.autograd.grad(function(*leaves), leaves, grad))

    def checked(of_input: Tensor, of_weight: Tensor, of_bias: Tensor) -> tuple[Tensor, ...]:
        """All rows, or so many of each, spread evenly: those of a staircase differ."""
        if checked_rows is None:
            return of_input, of_weight, of_bias
        return *(rows[:: -(-len(rows) // checked_rows)] for rows in (of_input, of_weight)), of_bias

    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight * dense.to(weight.dtype), bias)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.masked_linear(x, weight, mask, bias)

    reference = checked(*gradients(product, x.double(), weight.double(), bias.double(), grad.double())())
    makers = {
        OURS: lambda: Contender(gradients(ours, x, weight, bias, grad), lambda result: checked(*result)),
        PRODUCT: lambda: Contender(gradients(product, x, weight, bias, grad), lambda result: checked(*result)),
        # Its gradient of the masked weights, which an optimizer would have to mask again, is not compared.
        BEFOREHAND: lambda: Contender(
            gradients(F.linear, x, weight * dense, bias, grad),
            lambda result: checked(result[0], result[1] * dense, result[2]),
        ),
    }
    return Built(makers, against(reference))


def large_cases(settings: Settings) -> Iterator[Case]:
    """What matrix instructions are for. Each dtype in a case of its own, since a table has one."""
    size = settings.linear_large
    sizes = "B {}, I {}, O {}".format(*size)
    for dtype in LARGE_DTYPES:
        build = partial(_forward, size, settings, dtype=dtype)
        name = f"masked_linear, a large layer in {dtype}, forward"
        yield Case(name, sizes, "random normal", build, [OURS, BEFOREHAND, *PANELS], dtype)
    for dtype in LARGE_DTYPES:
        build = partial(_training, size, settings, dtype=dtype, checked_rows=CHECKED_ROWS)
        name = f"masked_linear, a large layer in {dtype}, forward + backward"
        yield Case(name, sizes, "random normal", build, [OURS, BEFOREHAND], dtype)


def cases(settings: Settings) -> Iterator[Case]:
    grid = [
        (batch, in_features, out_features)
        for batch in settings.linear_batches
        for in_features in settings.linear_features
        for out_features in settings.linear_features
    ]

    def case(name: str, size: tuple[int, int, int], build: Callable[[], Built], contenders: list[str]) -> Case:
        sizes = "B {}, I {}, O {}".format(*size)
        return Case(f"masked_linear, {name}", sizes, "random normal", build, contenders)

    # Layers of MADEs as they are used, with their gradients.
    for size in settings.linear_layers:
        build = partial(_forward, size, settings)
        yield case("a layer, forward", size, build, [OURS, PRODUCT, BEFOREHAND, *PANELS])
    for size in settings.linear_layers:
        build = partial(_training, size, settings)
        yield case("a layer, forward + backward", size, build, [OURS, PRODUCT, BEFOREHAND])
    if settings.device.type == "cuda":
        yield from large_cases(settings)
    contenders = [OURS, PRODUCT, BEFOREHAND, *PANELS]
    if settings.full and settings.compile_seconds > 0:
        contenders.append(COMPILED)
    for size in grid:
        yield case("forward", size, partial(_forward, size, settings), contenders)
    for size in grid:
        build = partial(_forward, size, settings, permuted=True)
        yield case("forward, permuted plan", size, build, [OURS, PRODUCT, BEFOREHAND])
    if settings.full or settings.tiny:
        for size in grid:
            yield case("forward + backward", size, partial(_training, size, settings), [OURS, PRODUCT])
