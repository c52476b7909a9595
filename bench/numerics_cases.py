"""What bench.numerics measures the ops on: for each op representative inputs, and inputs at the ends of what may come.

Kinds of inputs, for every op that they mean something to:

- representative: random numbers of the sizes that training gives.
- saturated: weights some thirty times as large. Activations lie at their ends, and probabilities at 0 and 1.
- tiny: magnitudes about the smallest normal number of the dtype, with denormal ones among inputs and results.
- huge: magnitudes a few times below the largest number of the dtype.
- long: sums over 10,000 variables, or a run of 1,000 draws.
- cancelling: large terms whose sum is small. The error is taken as a part of the terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ar_fast import Mask

STORAGE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WIDE = STORAGE[:2]


@dataclass(frozen=True)
class Inputs:
    """arguments: what ar_fast.functional is called with. leaves: those by which gradients are taken. terms: the largest
    magnitude that is added up on the way, where results are smaller. discrete: a sampler that draws whole numbers."""

    kind: str
    arguments: dict[str, object]
    leaves: tuple[str, ...] = ()
    terms: float = 0.0
    discrete: bool = False
    long: bool = field(default=False)


def _compute(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _normal(*shape: int, size: float = 1.0, dtype: torch.dtype) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * size).to(dtype)


def _tiny(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).tiny


def _huge(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max / 100


def _bits(batch: int, variables: int, dtype: torch.dtype) -> Tensor:
    return (torch.rand(batch, variables) < 0.3).to(dtype)


# --- NADE

NADE_LEAVES = ("in_weight", "in_bias", "out_weight", "out_bias")


def _nade_weights(
    batch: int, variables: int, hidden: int, dtype: torch.dtype, into: float = 1.0, out: float = 1.0
) -> dict[str, object]:
    return {
        "x": _bits(batch, variables, dtype),
        "in_weight": _normal(variables, hidden, size=into / variables**0.5, dtype=dtype),
        "in_bias": _normal(hidden, size=into, dtype=dtype),
        "out_weight": _normal(variables, hidden, size=out / hidden**0.5, dtype=dtype),
        "out_bias": _normal(variables, size=out, dtype=dtype),
    }


def nade(dtype: torch.dtype) -> Iterator[Inputs]:
    yield Inputs("representative", _nade_weights(16, 50, 40, dtype), NADE_LEAVES)
    dense = _nade_weights(16, 50, 40, dtype) | {"x": torch.rand(16, 50).to(dtype)}
    yield Inputs("representative, reals", dense, (*NADE_LEAVES, "x"))
    yield Inputs("representative, tanh", dense | {"activation": "tanh"}, (*NADE_LEAVES, "x"))
    yield Inputs("saturated", _nade_weights(16, 50, 40, dtype, 30.0, 30.0), NADE_LEAVES)
    tiny = _tiny(dtype)
    yield Inputs("tiny", _nade_weights(16, 50, 40, dtype, tiny, tiny), NADE_LEAVES)
    # The derivative of a sigmoid is zero there, and in float32 up to 6e-39: without it a gradient's terms are about 1.
    yield Inputs("huge", _nade_weights(16, 50, 40, dtype, _huge(dtype)), NADE_LEAVES, terms=1.0)
    cancelling = _nade_weights(16, 50, 40, dtype) | {"x": torch.ones(16, 50, dtype=dtype)}
    weight = _normal(25, 40, size=100.0, dtype=dtype)
    cancelling["in_weight"] = torch.stack([weight, -weight], 1).flatten(0, 1)
    yield Inputs("cancelling", cancelling, NADE_LEAVES, terms=float(weight.abs().max()))


def nade_log_prob(dtype: torch.dtype) -> Iterator[Inputs]:
    yield from nade(dtype)
    yield Inputs("long", _nade_weights(2, 10_000, 8, dtype), NADE_LEAVES, long=True)


def _sampler(
    make: Callable[..., dict[str, object]], dtype: torch.dtype, small: tuple[int, ...], long: tuple[int, ...]
) -> Iterator[Inputs]:
    """The inputs of a sampler, whose `make` takes sizes, dtype and the size of the weights."""
    yield Inputs("representative", make(*small, dtype, 1.0), discrete=True)
    # The draws are so likely that log p is about 0: the error is counted in nats.
    yield Inputs("saturated", make(*small, dtype, 30.0), terms=1.0, discrete=True)
    yield Inputs("tiny", make(*small, dtype, _tiny(dtype)), discrete=True)
    yield Inputs("long", make(*long, dtype, 1.0), discrete=True, long=True)


def _nade_sample(batch: int, variables: int, hidden: int, dtype: torch.dtype, size: float) -> dict[str, object]:
    weights = _nade_weights(batch, variables, hidden, dtype, size, size)
    del weights["x"]
    bias = weights.pop("in_bias").to(_compute(dtype))
    return weights | {"state": bias.expand(batch, -1).clone(), "seed": 1}


def nade_sample(dtype: torch.dtype) -> Iterator[Inputs]:
    yield from _sampler(_nade_sample, dtype, (16, 50, 40), (4, 1000, 20))
    reals = _nade_sample(16, 50, 40, dtype, 1.0)
    # A draw is read by the next ones: with small weights they do not make its rounding larger.
    reals |= {"out_weight": _normal(300, 40, size=0.02, dtype=dtype), "out_bias": _normal(300, size=0.3, dtype=dtype)}
    reals["in_weight"] = _normal(50, 40, size=0.1, dtype=dtype)
    yield Inputs("representative, Gaussian mixture", reals | {"head": "gaussian_mixture"})


def _deep_nade_sample(batch: int, variables: int, hidden: int, dtype: torch.dtype, size: float) -> dict[str, object]:
    arguments = _nade_sample(batch, variables, hidden, dtype, size)
    return arguments | {
        "mask_weight": _normal(variables, hidden, size=size / variables**0.5, dtype=dtype),
        "weights": [_normal(hidden, hidden, size=size / hidden**0.5, dtype=dtype)],
        "biases": [_normal(hidden, size=size, dtype=dtype)],
        "activation": "sigmoid",
    }


def deep_nade_sample(dtype: torch.dtype) -> Iterator[Inputs]:
    yield from _sampler(_deep_nade_sample, dtype, (16, 50, 40), (4, 1000, 20))


def _offset_nade_sample(batch: int, side: int, hidden: int, dtype: torch.dtype, size: float) -> dict[str, object]:
    """A window of two rows above and two columns to each side: 12 inputs."""
    return {
        "state": torch.zeros(batch, 2 * side + 2, dtype=_compute(dtype)),
        "in_weight": _normal(12, hidden, size=size, dtype=dtype),
        "in_bias": _normal(hidden, size=size, dtype=dtype),
        "out_weight": _normal(1, hidden, size=size / hidden**0.5, dtype=dtype),
        "out_bias": _normal(1, size=size, dtype=dtype),
        "grid": (side, side, 1),
        "window": (2, 2),
        "seed": 1,
    }


def offset_nade_sample(dtype: torch.dtype) -> Iterator[Inputs]:
    yield from _sampler(_offset_nade_sample, dtype, (16, 7, 40), (4, 32, 20))


def _armlp_sample(batch: int, variables: int, hidden: int, dtype: torch.dtype, size: float) -> dict[str, object]:
    starts = [0]
    for first in range(0, variables, 8):
        own = min(8, variables - first)
        starts.append(starts[-1] + (first + own - 1) * own)
    return {
        "state": torch.zeros(batch, variables, dtype=_compute(dtype)),
        "in_weight": _normal(starts[-1], hidden, size=size / variables**0.5, dtype=dtype),
        "block_starts": torch.tensor(starts),
        "in_bias": _normal(variables, hidden, size=size, dtype=dtype),
        "out_weight": _normal(variables, hidden, size=size / hidden**0.5, dtype=dtype),
        "out_bias": _normal(variables, size=size, dtype=dtype),
        "seed": 1,
    }


def armlp_sample(dtype: torch.dtype) -> Iterator[Inputs]:
    yield from _sampler(_armlp_sample, dtype, (16, 50, 7), (4, 500, 5))


def _masked_mlp_sample(batch: int, variables: int, each: int, dtype: torch.dtype, size: float) -> dict[str, object]:
    """One hidden layer with `each` units for every degree."""
    hidden = each * (variables - 1)
    degrees, ends = torch.arange(hidden) // each + 1, torch.arange(variables) * each
    return {
        "state": torch.zeros(batch, variables + hidden, dtype=_compute(dtype)),
        "weights": [
            _normal(hidden, variables, size=size / variables**0.5, dtype=dtype),
            _normal(variables, hidden, size=size / hidden**0.5, dtype=dtype),
        ],
        "biases": [_normal(hidden, size=size, dtype=dtype), _normal(variables, size=size, dtype=dtype)],
        "extents": [degrees.int(), ends.int()],
        "unit_ends": [ends.int()],
        "seed": 1,
    }


def masked_mlp_sample(dtype: torch.dtype) -> Iterator[Inputs]:
    yield from _sampler(_masked_mlp_sample, dtype, (16, 50, 3), (4, 500, 1))


def _rnn_sample(
    batch: int, variables: int, hidden: int, dtype: torch.dtype, size: float, cell: str = "gru"
) -> dict[str, object]:
    gates = {"gru": 3, "lstm": 4, "rnn": 1}[cell] * hidden
    state = torch.zeros(1, batch, hidden, dtype=_compute(dtype))
    own = {"cell_state": state.clone()} if cell == "lstm" else {}
    return own | {
        "state": state,
        "last": torch.zeros(batch, dtype=_compute(dtype)),
        "in_table": _normal(1, gates, size=size, dtype=dtype),
        "in_bias": _normal(gates, size=size, dtype=dtype),
        "recurrent_weights": [_normal(gates, hidden, size=size / hidden**0.5, dtype=dtype)],
        "recurrent_biases": [_normal(gates, size=size, dtype=dtype)],
        "out_weight": _normal(1, hidden, size=size / hidden**0.5, dtype=dtype),
        "out_bias": _normal(1, size=size, dtype=dtype),
        "cell": cell,
        "seed": 1,
        "variables": variables,
    }


def rnn_sample(dtype: torch.dtype) -> Iterator[Inputs]:
    # A recurrence of large weights is chaotic: what was rounded grows from step to step, in any arithmetic.
    small = (16, 50, 40, dtype)
    for cell in ("gru", "lstm", "rnn"):
        yield Inputs(f"representative, {cell}", _rnn_sample(*small, 0.5, cell), discrete=True)
        yield Inputs(f"tiny, {cell}", _rnn_sample(*small, _tiny(dtype), cell), discrete=True)
    yield Inputs("saturated, one step", _rnn_sample(16, 1, 40, dtype, 30.0), terms=1.0, discrete=True)
    yield Inputs("long, gru", _rnn_sample(4, 1000, 20, dtype, 0.5), discrete=True, long=True)


# --- masked layers


def _mask(rows: int, columns: int) -> Mask:
    degrees = rows + columns
    return Mask.from_degrees(torch.randint(degrees, (columns,)), torch.randint(degrees, (rows,)))


def _linear(dtype: torch.dtype, name: str) -> Iterator[Inputs]:
    """`name` is the argument beside weight: input, or grad_output of the transposed product."""
    transposed = name == "grad_output"
    leaves = (name, "weight") if transposed else (name, "weight", "bias")

    def layer(rows: int, columns: int, size: float, of_values: float, batch: int = 24) -> dict[str, object]:
        arguments: dict[str, object] = {
            name: _normal(batch, rows if transposed else columns, size=of_values, dtype=dtype),
            "weight": _normal(rows, columns, size=size, dtype=dtype),
            "mask": _mask(rows, columns),
        }
        return arguments if transposed else arguments | {"bias": _normal(rows, size=size * of_values, dtype=dtype)}

    yield Inputs("representative", layer(70, 90, 0.1, 1.0), leaves)
    tiny, huge = _tiny(dtype), _huge(dtype)
    yield Inputs("tiny", layer(70, 90, tiny, 1.0), leaves)
    yield Inputs("huge", layer(70, 90, huge / 100, 1.0), leaves)
    long = (10_000, 8) if transposed else (8, 10_000)
    yield Inputs("long", layer(*long, 0.01, 1.0), leaves, long=True)
    cancelling = layer(60, 60, 1.0, 1.0)
    weight, values = cancelling["weight"], cancelling[name]
    # Neighbours are opposite, and the mask parts no pair of them.
    if transposed:
        weight[1::2] = weight[::2]
        degrees = torch.randperm(30).repeat_interleave(2)
        cancelling["mask"] = Mask.from_degrees(torch.randint(30, (60,)), degrees)
    else:
        weight[:, 1::2] = weight[:, ::2]
        degrees = torch.randperm(30).repeat_interleave(2)
        cancelling["mask"] = Mask.from_degrees(degrees, torch.randint(30, (60,)))
        cancelling["bias"] = _normal(60, size=1e-3, dtype=dtype)
    values *= 100
    values[:, 1::2] = -values[:, ::2]
    terms = float((values.abs().double() @ (weight if transposed else weight.T).abs().double()).max())
    yield Inputs("cancelling", cancelling, leaves, terms=terms)


def masked_linear(dtype: torch.dtype) -> Iterator[Inputs]:
    yield from _linear(dtype, "input")


def masked_linear_grad_input(dtype: torch.dtype) -> Iterator[Inputs]:
    yield from _linear(dtype, "grad_output")


# --- heads and transforms


def head_log_prob(dtype: torch.dtype) -> Iterator[Inputs]:
    batch, variables, leaves = 24, 30, ("parameters",)
    for head, count in (("bernoulli", 1), ("categorical", 5), ("gaussian_mixture", 9), ("logistic_mixture", 9)):
        levels = 256 if head == "logistic_mixture" else 0
        x = {
            "bernoulli": _bits(batch, variables, dtype),
            "categorical": torch.randint(5, (batch, variables)),
            "gaussian_mixture": _normal(batch, variables, dtype=dtype),
            "logistic_mixture": (2 * torch.randint(256, (batch, variables)) / 255 - 1).to(dtype),
        }[head]
        own = {"x": x, "head": head, "levels": levels}
        name = head.replace("_", " ")

        def parameters(size: float, columns: int = variables * count) -> dict[str, object]:
            return {"parameters": _normal(batch, columns, size=size, dtype=dtype)}

        yield Inputs(f"representative, {name}", own | parameters(1.0), leaves)
        yield Inputs(f"tiny, {name}", own | parameters(_tiny(dtype)), leaves)
        if head in ("bernoulli", "categorical"):
            yield Inputs(f"saturated, {name}", own | parameters(1e4), leaves)
            yield Inputs(f"huge, {name}", own | parameters(_huge(dtype)), leaves)
        else:
            yield Inputs(f"saturated, {name}", own | parameters(8.0), leaves)


# The constants of each transform, and how many parameters a variable has.
TRANSFORMS: dict[str, tuple[tuple[float, ...], int]] = {
    "affine_soft_clip": ((6.9,), 2),
    "affine_clamp": ((-5.0, 3.0), 2),
    "affine_softplus": ((1e-3,), 2),
    "affine_sigmoid": ((2.0, 1e-3), 2),
    "affine_gated": ((2.0,), 2),
    "spline_soft_clip": ((-5.0, 5.0, 6.9), 23),
    "spline_softplus": ((-3.0, 3.0, 1e-3, 1e-3, 1e-3, 0.1), 23),
}


def univariate_transform(dtype: torch.dtype) -> Iterator[Inputs]:
    for transform, (constants, count) in TRANSFORMS.items():
        own = {"transform": transform, "constants": constants, "x": _normal(50, 20, size=1.5, dtype=dtype)}
        for kind, size in (("representative", 1.0), ("saturated", 10.0), ("tiny", _tiny(dtype))):
            parameters = _normal(50, 20 * count, size=size, dtype=dtype)
            name = transform.replace("_", " ")
            # log|det| is a logarithm of about 1 where parameters are tiny.
            yield Inputs(f"{kind}, {name}", own | {"parameters": parameters}, ("x", "parameters"), terms=1.0)


def masked_mlp_flow(dtype: torch.dtype) -> Iterator[Inputs]:
    variables, hidden = 8, 32
    for transform, (constants, count) in TRANSFORMS.items():
        degrees = torch.arange(1, variables + 1), torch.arange(hidden) % (variables - 1) + 1
        own = torch.arange(variables).repeat_interleave(count)
        masks = [degrees[1][:, None] >= degrees[0], own[:, None] >= degrees[1]]
        weights = [_normal(*mask.shape, size=mask.shape[1] ** -0.5, dtype=dtype) for mask in masks]
        arguments = {
            "x": _normal(50, variables, size=1.5, dtype=dtype),
            "weights": weights,
            "masks": masks,
            "biases": [_normal(len(weight), dtype=dtype) for weight in weights],
            "transform": transform,
            "constants": constants,
        }
        yield Inputs(f"representative, {transform.replace('_', ' ')}", arguments, ("x", "weights", "biases"))


def inverse_adjoint(dtype: torch.dtype) -> Iterator[Inputs]:
    variables, batch = 30, 20
    weight = _normal(variables, variables, size=variables**-0.5, dtype=dtype).tril(-1)
    levels = list(range(variables))
    for kind, size in (("representative", 1.0), ("tiny", _tiny(dtype))):
        arguments = {
            "grad": _normal(batch, variables, size=size, dtype=dtype),
            "factors": _normal(batch, variables, dtype=dtype),
            "weights": [weight],
            "slopes": [],
            "program": [0, -1, 1, 0],
            "ends": [0, *levels, *levels, variables],
        }
        yield Inputs(kind, arguments)


# Every op of ar_fast.functional that runs on a CPU: its inputs, and the dtypes that it is for.
OPS: dict[str, tuple[Callable[[torch.dtype], Iterator[Inputs]], tuple[torch.dtype, ...]]] = {
    "nade": (nade, STORAGE),
    "nade_log_prob": (nade_log_prob, STORAGE),
    "nade_sample": (nade_sample, STORAGE),
    "deep_nade_sample": (deep_nade_sample, STORAGE),
    "offset_nade_sample": (offset_nade_sample, STORAGE),
    "armlp_sample": (armlp_sample, STORAGE),
    "masked_mlp_sample": (masked_mlp_sample, STORAGE),
    "rnn_sample": (rnn_sample, STORAGE),
    "masked_linear": (masked_linear, STORAGE),
    "masked_linear_grad_input": (masked_linear_grad_input, STORAGE),
    "head_log_prob": (head_log_prob, WIDE),
    "univariate_transform": (univariate_transform, WIDE),
    "masked_mlp_flow": (masked_mlp_flow, WIDE),
    "inverse_adjoint": (inverse_adjoint, STORAGE),
}
# It has a CUDA kernel only; on a CPU masked_mlp_sample draws the same samples.
ONLY_ON_CUDA = ("fvsbn_sample",)
