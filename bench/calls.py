"""The reference calls: every kind of model and every op on it, and masked layers.

bench.counts counts the instructions of each at small sizes, and bench.compare times each at usual ones. A worker of
bench.compare runs this file against another commit of ar_fast, so that it uses public names only, and only in a call's
build.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ar_fast import Mask, functional, heads, models, nn

Run = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """B, the side of a square image (D is its square), H of each kind, and the features I = O of the two layers."""

    batch: int
    side: int
    hidden: int
    untied_hidden: int
    deep_hidden: tuple[int, ...]
    masked_hidden: int
    small: int
    middle: int

    @property
    def variables(self) -> int:
        return self.side**2


# Small, since an instruction takes callgrind about 50 times as long. Most sizes are no multiples of 8 or 16, so that
# the ends of the kernels' loops are counted too.
COUNTED = Sizes(
    batch=20,
    side=14,
    hidden=100,
    untied_hidden=10,
    deep_hidden=(30, 20),
    masked_hidden=150,
    small=50,
    middle=500,
)
TIMED = Sizes(
    batch=64,
    side=28,
    hidden=500,
    untied_hidden=16,
    deep_hidden=(128, 128),
    masked_hidden=500,
    small=64,
    middle=2048,
)


@dataclass(frozen=True)
class Call:
    """One op of one kind of model or layer. `build` makes the model and its data, and returns the call."""

    kind: str
    op: str
    build: Callable[[Sizes], Run]

    @property
    def title(self) -> str:
        return f"{self.kind}: {self.op}"


def _bits(sizes: Sizes) -> Tensor:
    return torch.rand(sizes.batch, sizes.variables).lt(0.2).float()


def _categories(sizes: Sizes) -> Tensor:
    return torch.randint(4, (sizes.batch, sizes.variables))


def _reals(sizes: Sizes) -> Tensor:
    return torch.randn(sizes.batch, sizes.variables)


def _gray(sizes: Sizes) -> Tensor:
    return torch.randint(256, (sizes.batch, sizes.variables))


def _nade(sizes: Sizes, **options) -> models.AutoregressiveModel:
    return models.NADE(sizes.variables, sizes.hidden, **options)


def _made(sizes: Sizes, layers: int = 2, **options) -> models.AutoregressiveModel:
    return models.MADE(sizes.variables, [sizes.masked_hidden] * layers, **options)


# kind -> how to make the model, and values of its variables, (B, D)
MODELS: dict[str, tuple[Callable[[Sizes], torch.nn.Module], Callable[[Sizes], Tensor]]] = {
    "FVSBN": (lambda sizes: models.FVSBN(sizes.variables), _bits),
    "ARMLP": (lambda sizes: models.ARMLP(sizes.variables, sizes.untied_hidden), _bits),
    "NADE": (_nade, _bits),
    "NADE Categorical": (lambda sizes: _nade(sizes, head=heads.Categorical(4)), _categories),
    "NADE LogisticMixture": (lambda sizes: _nade(sizes, head=heads.LogisticMixture(3, levels=256)), _gray),
    "NADE bfloat16": (lambda sizes: _nade(sizes, dtype=torch.bfloat16), _bits),
    "NADE float64": (lambda sizes: _nade(sizes, dtype=torch.float64), _bits),
    "RNADE": (lambda sizes: models.RNADE(sizes.variables, sizes.hidden, components=3), _reals),
    "OffsetNADE": (
        lambda sizes: models.OffsetNADE((sizes.side, sizes.side), sizes.hidden, window=(3, 3)),
        lambda sizes: _bits(sizes).view(-1, sizes.side, sizes.side),
    ),
    "DeepNADE": (lambda sizes: models.DeepNADE(sizes.variables, sizes.deep_hidden), _bits),
    "RNN": (lambda sizes: models.RNN(sizes.variables, sizes.hidden), _bits),
    "RNN LSTM": (lambda sizes: models.RNN(sizes.variables, sizes.hidden, cell="lstm", num_layers=2), _bits),
    "MADE": (_made, _bits),
    "MADE residual": (lambda sizes: _made(sizes, 3, residual=True, direct=True), _bits),
    "MADE Categorical": (lambda sizes: _made(sizes, head=heads.Categorical(4)), _categories),
    "MADE bfloat16": (lambda sizes: _made(sizes, dtype=torch.bfloat16), _bits),
}

# kind -> which of the sizes, whether rows and columns are permuted, dtype
LAYERS: dict[str, tuple[str, bool, torch.dtype]] = {
    "MaskedLinear small": ("small", False, torch.float32),
    "MaskedLinear small permuted": ("small", True, torch.float32),
    "MaskedLinear middle": ("middle", False, torch.float32),
    "MaskedLinear middle permuted": ("middle", True, torch.float32),
    "MaskedLinear middle bfloat16": ("middle", False, torch.bfloat16),
}

# kind -> the name of an autoregressive transform, its constants, and how many parameters a variable has
TRANSFORMS: dict[str, tuple[str, tuple[float, ...], int]] = {
    "Transform affine": ("affine_softplus", (1e-3,), 2),
    "Transform spline": ("spline_softplus", (-3.0, 3.0, 1e-3, 1e-3, 1e-3, 0.1), 23),
}

KINDS = [*MODELS, *LAYERS, *TRANSFORMS]


def _model(kind: str, sizes: Sizes) -> tuple[torch.nn.Module, Tensor]:
    torch.manual_seed(0)
    make, values = MODELS[kind]
    model, x = make(sizes), values(sizes)
    return model, x.to(next(model.parameters()).dtype) if x.is_floating_point() else x


def _forward(kind: str, sizes: Sizes) -> Run:
    model, x = _model(kind, sizes)
    return torch.no_grad()(lambda: model(x))


def _log_prob(kind: str, sizes: Sizes) -> Run:
    model, x = _model(kind, sizes)
    return torch.no_grad()(lambda: model.log_prob(x))


def _training(kind: str, sizes: Sizes) -> Run:
    model, x = _model(kind, sizes)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        model.log_prob(x).mean().backward()

    return run


def _sample(kind: str, sizes: Sizes) -> Run:
    model, _ = _model(kind, sizes)
    return lambda: model.sample(sizes.batch, seed=0)


def _layer(kind: str, sizes: Sizes) -> tuple[torch.nn.Module, Tensor]:
    """A layer with half of its weights masked."""
    torch.manual_seed(0)
    size, permuted, dtype = LAYERS[kind]
    features = getattr(sizes, size)
    in_degrees, out_degrees = torch.arange(1, features + 1), torch.arange(1, features + 1)
    if permuted:
        in_degrees, out_degrees = in_degrees[torch.randperm(features)], out_degrees[torch.randperm(features)]
    layer = nn.MaskedLinear(features, features, Mask.from_degrees(in_degrees, out_degrees), dtype=dtype)
    return layer, torch.randn(sizes.batch, features).to(dtype)


def _layer_forward(kind: str, sizes: Sizes) -> Run:
    layer, x = _layer(kind, sizes)
    return torch.no_grad()(lambda: layer(x))


def _layer_training(kind: str, sizes: Sizes) -> Run:
    layer, x = _layer(kind, sizes)
    x.requires_grad_()

    def run() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).float().square().mean().backward()

    return run


def transform(kind: str, sizes: Sizes) -> tuple[Callable[..., tuple[Tensor, Tensor]], list[Tensor]]:
    """One transform of a flow, with one hidden layer: the call, and the values (B, side), weights and biases."""
    torch.manual_seed(0)
    name, constants, count = TRANSFORMS[kind]
    variables, hidden = sizes.side, sizes.small
    degrees = torch.arange(1, variables + 1), torch.arange(hidden) % (variables - 1) + 1
    own = torch.arange(variables).repeat_interleave(count)
    masks = [(degrees[1][:, None] >= degrees[0]).float(), (own[:, None] >= degrees[1]).float()]
    weights = [torch.randn(mask.shape) / mask.shape[1] ** 0.5 for mask in masks]
    leaves = [torch.randn(sizes.batch, variables), *weights, *(torch.randn(len(weight)) for weight in weights)]

    def call(x: Tensor, first: Tensor, second: Tensor, *biases: Tensor) -> tuple[Tensor, Tensor]:
        return functional.masked_mlp_flow(
            x,
            [first, second],
            [mask.to(x.device) for mask in masks],
            biases,
            transform=name,
            constants=constants,
        )

    return call, leaves


def _transform_forward(kind: str, sizes: Sizes) -> Run:
    call, leaves = transform(kind, sizes)
    return torch.no_grad()(lambda: call(*leaves))


def _transform_training(kind: str, sizes: Sizes) -> Run:
    call, leaves = transform(kind, sizes)
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def run() -> None:
        y, log_det = call(*leaves)
        torch.autograd.grad(y.sum() + log_det.sum(), leaves)

    return run


MODEL_OPS = {"log_prob": _log_prob, "log_prob + backward": _training, "sample": _sample}
LAYER_OPS = {"forward": _layer_forward, "forward + backward": _layer_training}
TRANSFORM_OPS = {"forward": _transform_forward, "forward + backward": _transform_training}


def select(kinds: Iterable[str] = ()) -> list[Call]:
    """The calls of these kinds; of all where none is named."""
    chosen = list(kinds) or KINDS
    calls = []
    for kind in chosen:
        ops = MODEL_OPS if kind in MODELS else LAYER_OPS if kind in LAYERS else TRANSFORM_OPS
        if kind.startswith("RNN"):
            # torch.nn computes its log_prob and gradient.
            ops = {"sample": _sample}
        if kind == "NADE":
            # The kernel that writes parameters out; log_prob and sample have fused ones.
            ops = {"forward": _forward, **ops}
        calls += [Call(kind, op, lambda sizes, kind=kind, make=make: make(kind, sizes)) for op, make in ops.items()]
    return calls
