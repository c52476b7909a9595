"""What bench.roofline measures: calls at the sizes of README's table, and what each of them must do at least.

A count is what the mathematics leaves, however a kernel does it: an input that is zero adds nothing to a hidden state,
a masked weight is not multiplied, and a weight is read once a call. B rows, D variables, H hidden units, I inputs and
O outputs; `ones` is how many inputs of all rows are not zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ar_fast import Mask, functional, heads, models, nn

from . import data
from .calls import TIMED, Sizes, transform
from .sampling import _parameters

Run = Callable[[], object]
BYTES = 4


@dataclass(frozen=True)
class Counts:
    """multiply_adds: also additions and products alone, which take as long. activations: sigmoids, and what costs about
    as much: tanh, exp, log. far: bytes that come from or go to memory, each tensor once. near: bytes read again from
    the caches, where a step cannot keep them in registers."""

    multiply_adds: float
    activations: float = 0.0
    far: float = 0.0
    near: float = 0.0


@dataclass(frozen=True)
class Kernel:
    """One call. formulas: multiply-adds, activations and bytes, in words. row: the work of its row in README."""

    name: str
    sizes: str
    formulas: tuple[str, str, str]
    build: Callable[[], tuple[Run, Counts]]
    row: str | None = None


# --- counts


def nade_log_prob(batch: int, variables: int, hidden: int, ones: float) -> Counts:
    """A state changes where an input is not zero, and so do its activations; each logit is a product with all H."""
    return Counts(
        multiply_adds=(batch * variables + ones) * hidden,
        activations=(ones + batch) * hidden + batch * variables,
        far=BYTES * (2 * variables * hidden + batch * variables),
    )


def nade_gradients(batch: int, variables: int, hidden: int, ones: float) -> Counts:
    """Also the states again, both gradients of each logit's product, and the gradient of each changed state."""
    forward = nade_log_prob(batch, variables, hidden, ones)
    return Counts(
        multiply_adds=(3 * batch * variables + 4 * ones) * hidden,
        activations=forward.activations + (ones + batch) * hidden,
        far=BYTES * (4 * variables * hidden + batch * variables),
    )


def masked_product(batch: int, inputs: int, outputs: int, allowed: int, passes: int = 1) -> Counts:
    """passes: 1 forward, 3 with both gradients."""
    return Counts(
        multiply_adds=passes * batch * allowed,
        far=BYTES * (passes * allowed + (1 if passes == 1 else 2) * batch * (inputs + outputs)),
    )


def network(batch: int, layers: list[tuple[int, int, int]], activations: float, passes: int = 1) -> Counts:
    """Masked layers as (inputs, outputs, allowed weights)."""
    each = [masked_product(batch, *layer, passes) for layer in layers]
    return Counts(sum(c.multiply_adds for c in each), activations, sum(c.far for c in each))


def recurrent(batch: int, steps: int, hidden: int, gates: int, symbols: int, activations: int) -> Counts:
    """A step reads all its weights: a core's near caches hold them, registers do not."""
    weights = gates * hidden * hidden + symbols * hidden
    return Counts(
        multiply_adds=steps * batch * weights,
        activations=steps * batch * (activations * hidden + symbols),
        far=BYTES * (weights + symbols * gates * hidden),
        near=BYTES * steps * weights,
    )


# --- calls

B, D, H = 128, 784, 500


def _with_ones(x: Tensor) -> float:
    return float((x != 0).sum())


def _log_prob(make: Callable[[int, int], tuple[Tensor, str]], gradients: bool) -> tuple[Run, Counts]:
    x, _ = make(B, D)
    parameters = data.nade_parameters(D, H)
    if not gradients:
        run = torch.no_grad()(lambda: functional.nade_log_prob(x, **parameters))
        return run, nade_log_prob(B, D, H, _with_ones(x))
    leaves = {name: value.requires_grad_() for name, value in parameters.items()}

    def training() -> object:
        return torch.autograd.grad(-functional.nade_log_prob(x, **leaves).mean(), list(leaves.values()))

    return training, nade_gradients(B, D, H, _with_ones(x))


def _nade_sample(batch: int, variables: int, hidden: int) -> tuple[Run, Counts]:
    parameters = _parameters(variables, hidden)
    state = parameters.pop("in_bias").expand(batch, -1).contiguous()

    def run() -> tuple[Tensor, ...]:
        return functional.nade_sample(state, **parameters, seed=0)

    return run, nade_log_prob(batch, variables, hidden, _with_ones(run()[0]))


def _made_layers(variables: int, hidden: int) -> list[tuple[int, int, int]]:
    model = models.MADE(variables, [hidden])
    return [(layer.in_features, layer.out_features, int(layer.mask.to_dense().sum())) for layer in model.layers]


def _model(model: models.AutoregressiveModel, x: Tensor, op: str) -> Run:
    torch.manual_seed(0)
    if op == "sample":
        return lambda: model.sample(len(x), seed=0)
    if op == "log_prob":
        return torch.no_grad()(lambda: model.log_prob(x))

    def training() -> None:
        model.zero_grad(set_to_none=True)
        model.log_prob(x).mean().backward()

    return training


def _made(op: str, batch: int = 64) -> tuple[Run, Counts]:
    torch.manual_seed(12)
    x, _ = data.digits(batch, D)
    model = models.MADE(D, [H])
    model.initialize_from_mean(data.digits(500, D)[0].mean(0).clamp(0.01, 0.99))
    layers = _made_layers(D, H)
    return _model(model, x, op), network(batch, layers, batch * D, 3 if op == "gradients" else 1)


def _masked_linear(batch: int, inputs: int, outputs: int, gradients: bool) -> tuple[Run, Counts]:
    torch.manual_seed(0)
    degrees = torch.arange(inputs), torch.arange(outputs) * inputs // outputs
    layer = nn.MaskedLinear(inputs, outputs, Mask.from_degrees(*degrees))
    x = torch.randn(batch, inputs, requires_grad=gradients)
    allowed = int(layer.mask.to_dense().sum())
    if not gradients:
        return torch.no_grad()(lambda: layer(x)), masked_product(batch, inputs, outputs, allowed)
    direction = torch.randn(batch, outputs)
    leaves = [x, *layer.parameters()]

    def training() -> object:
        return torch.autograd.grad(layer(x), leaves, direction)

    return training, masked_product(batch, inputs, outputs, allowed, 3)


def _fvsbn(op: str) -> tuple[Run, Counts]:
    x, _ = data.digits(B, D)
    model = models.FVSBN(D)
    model.initialize_from_mean(data.digits(500, D)[0].mean(0).clamp(0.01, 0.99))
    earlier = torch.arange(D)
    if op == "sample":
        x = model.sample(B, seed=0)
    # A one at place i adds a row of weights to the D - 1 - i logits after it.
    added = float(((x != 0) * (D - 1 - earlier)).sum())
    return _model(model, x, op), Counts(added, B * D, BYTES * (D * (D - 1) / 2 + B * D))


def _armlp() -> tuple[Run, Counts]:
    hidden, batch = 16, 64
    model = models.ARMLP(D, hidden)
    drawn = model.sample(batch, seed=0)
    added = float(((drawn != 0) * (D - 1 - torch.arange(D))).sum()) * hidden
    weights = D * (D - 1) / 2 * hidden
    return _model(model, drawn, "sample"), Counts(
        added + batch * D * hidden, batch * D * (hidden + 1), BYTES * (weights + D * hidden)
    )


def _deep_nade() -> tuple[Run, Counts]:
    batch, (first, second) = 64, (128, 128)
    model = models.DeepNADE(D, [first, second])
    ones = _with_ones(model.sample(batch, seed=0))
    steps = batch * D
    # Each step adds what says that the variable is observed, and its value if that is not zero. ReLU is no activation
    # in the sense of Counts.
    own = Counts(
        (steps + ones) * first + steps * (first * second + second), steps,
        BYTES * (3 * D * first + first * second), BYTES * D * first * second,
    )  # fmt: skip
    return _model(model, torch.empty(batch, D), "sample"), own


def _offset_nade(op: str) -> tuple[Run, Counts]:
    batch, side, hidden, taps = 64, 28, H, 3 * 7 + 3
    model = models.OffsetNADE((side, side), hidden, window=(3, 3))
    with torch.no_grad():
        model.out_bias.fill_(-1.8)
    x = model.sample(batch, seed=0) if op == "sample" else data.digits(batch, D)[0].view(batch, side, side)
    variables = batch * D
    return _model(model, x, op), Counts(
        (_with_ones(x) * taps + variables) * hidden, variables * (hidden + 1), BYTES * (taps + 1) * hidden
    )


def _recurrent(cell: str) -> tuple[Run, Counts]:
    batch, steps, hidden, symbols = 16, 500, 512, 65
    gates, activations = {"gru": (3, 3), "lstm": (4, 5), "rnn": (1, 1)}[cell]
    torch.manual_seed(0)
    size, rows = hidden**-0.5, gates * hidden
    state = torch.zeros(1, batch, hidden)

    def run() -> object:
        return functional.rnn_sample(
            state, torch.zeros(batch), table, bias, [weight], [bias], out_weight, torch.zeros(symbols), seed=0,
            cell=cell, cell_state=state if cell == "lstm" else None, head="categorical", variables=steps,
        )  # fmt: skip

    table, bias = torch.randn(symbols, rows) * size, torch.randn(rows) * size
    weight, out_weight = torch.randn(rows, hidden) * size, torch.randn(symbols, hidden) * size
    return run, recurrent(batch, steps, hidden, gates, symbols, activations)


def _flow(gradients: bool) -> tuple[Run, Counts]:
    sizes = Sizes(**{**vars(TIMED), "batch": 256})
    call, leaves = transform("Transform affine", sizes)
    variables, hidden, batch = sizes.side, sizes.small, sizes.batch
    degrees, places = torch.arange(hidden) % (variables - 1) + 1, torch.arange(variables)
    allowed, out = int((degrees > places[:, None]).sum()), 2 * int((degrees <= places[:, None]).sum())
    passes = 3 if gradients else 1
    # A scale takes a softplus and a logarithm.
    layers = [(variables, hidden, allowed), (hidden, 2 * variables, out)]
    counts = network(batch, layers, 3 * passes * batch * variables, passes)
    if not gradients:
        return torch.no_grad()(lambda: call(*leaves)), counts
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def training() -> object:
        y, log_det = call(*leaves)
        return torch.autograd.grad(y.sum() + log_det.sum(), leaves)

    return training, counts


def _head(head: heads.Head, name: str, count: int, activations: int) -> tuple[Run, Counts]:
    """activations: for each number of a variable, as its K."""
    torch.manual_seed(0)
    parameters, x = torch.randn(B, D * count), torch.randn(B, D)
    if name in ("bernoulli", "categorical"):
        x = torch.randint(count if count > 1 else 2, (B, D)).float()
    run = torch.no_grad()(lambda: functional.head_log_prob(parameters, x, head=name))
    return run, Counts(3 * B * D * count, activations * B * D, BYTES * B * D * (count + 2))


NADE = ("(B D + ones) H", "(ones + B) H + B D", "4 (2 D H + B D)")
NADE_GRADIENTS = ("(3 B D + 4 ones) H", "2 (ones + B) H + B D", "4 (4 D H + B D)")
PRODUCT = ("B allowed", "0", "4 (allowed + B (I + O))")
PRODUCT_GRADIENTS = ("3 B allowed", "0", "4 (3 allowed + 2 B (I + O))")
OF_RNN = ("steps B (G H + K) H", "steps B (A H + K)", "4 (G H + K + K G) H; each step 4 (G H + K) H again")
SIZES = f"B {B}, D {D}, H {H}"

KERNELS = [
    Kernel("NADE log_prob, digits", SIZES, NADE, lambda: _log_prob(data.digits, False), "NADE log_prob, digits"),
    Kernel("NADE log_prob, reals", SIZES, NADE, lambda: _log_prob(data.uniform_reals, False)),
    Kernel(
        "NADE gradients, digits", SIZES, NADE_GRADIENTS, lambda: _log_prob(data.digits, True),
        "NADE log_prob and gradients, digits",
    ),
    Kernel("NADE gradients, reals", SIZES, NADE_GRADIENTS, lambda: _log_prob(data.uniform_reals, True)),
    Kernel("NADE sampling, 14% ones", SIZES, NADE, lambda: _nade_sample(B, D, H), "NADE sampling, 14% ones"),
    Kernel(
        "NADE sampling, 256 x 256 colours", "B 16, D 196,608, H 512", NADE, lambda: _nade_sample(16, 196_608, 512),
        "NADE sampling, a 256 x 256 colour image",
    ),
    Kernel("MADE log_prob", "B 64, 784-500-784", ("B allowed", "B D", PRODUCT[2]), lambda: _made("log_prob")),
    Kernel(
        "MADE gradients", "B 64, 784-500-784", ("3 B allowed", "B D", PRODUCT_GRADIENTS[2]), lambda: _made("gradients")
    ),
    Kernel(
        "MADE sampling", "B 64, 784-500-784", ("B allowed", "B D", PRODUCT[2]), lambda: _made("sample"),
        "MADE sampling",
    ),
    Kernel(
        "MaskedLinear", "B 512, 2048 to 2048", PRODUCT, lambda: _masked_linear(512, 2048, 2048, False),
        "MaskedLinear forward",
    ),
    Kernel(
        "MaskedLinear gradients", "B 512, 2048 to 2048", PRODUCT_GRADIENTS,
        lambda: _masked_linear(512, 2048, 2048, True),
    ),
    Kernel("MaskedLinear, one row", "B 1, 2048 to 2048", PRODUCT, lambda: _masked_linear(1, 2048, 2048, False)),
    Kernel(
        "FVSBN log_prob, digits", f"B {B}, D {D}", ("sum over ones of D - 1 - i", "B D", "4 (D (D - 1) / 2 + B D)"),
        lambda: _fvsbn("log_prob"),
    ),
    Kernel(
        "FVSBN sampling", f"B {B}, D {D}", ("sum over ones of D - 1 - i", "B D", "4 (D (D - 1) / 2 + B D)"),
        lambda: _fvsbn("sample"),
    ),
    Kernel(
        "ARMLP sampling", f"B 64, D {D}, H 16",
        ("H (B D + sum over ones of D - 1 - i)", "B D (H + 1)", "4 H (D (D - 1) / 2 + D)"), _armlp,
    ),
    Kernel(
        "DeepNADE sampling", f"B 64, D {D}, H 128 and 128",
        ("(B D + ones) H1 + B D (H1 H2 + H2)", "B D", "4 (3 D H1 + H1 H2); each step 4 H1 H2 again"), _deep_nade,
    ),
    Kernel(
        "OffsetNADE log_prob, digits", f"B 64, 28 x 28, H {H}, 24 inputs",
        ("(24 ones + B D) H", "B D (H + 1)", "4 25 H"),
        lambda: _offset_nade("log_prob"),
    ),
    Kernel(
        "OffsetNADE sampling", f"B 64, 28 x 28, H {H}, 24 inputs",
        ("(24 ones + B D) H", "B D (H + 1)", "4 25 H"),
        lambda: _offset_nade("sample"),
    ),
    Kernel("GRU sampling", "B 16, 500 steps, H 512, K 65, G 3", OF_RNN, lambda: _recurrent("gru")),
    Kernel("LSTM sampling", "B 16, 500 steps, H 512, K 65, G 4", OF_RNN, lambda: _recurrent("lstm")),
    Kernel("Elman sampling", "B 16, 500 steps, H 512, K 65, G 1", OF_RNN, lambda: _recurrent("rnn")),
    Kernel("masked_mlp_flow, affine", "B 256, 28-64-56", ("B allowed", "3 B D", PRODUCT[2]), lambda: _flow(False)),
    Kernel(
        "masked_mlp_flow gradients", "B 256, 28-64-56", ("3 B allowed", "9 B D", PRODUCT_GRADIENTS[2]),
        lambda: _flow(True),
    ),
    Kernel(
        "head_log_prob, Bernoulli", f"B {B}, D {D}", ("3 B D", "2 B D", "12 B D"),
        lambda: _head(heads.Bernoulli(), "bernoulli", 1, 2),
    ),
    Kernel(
        "head_log_prob, Categorical(4)", f"B {B}, D {D}, K 4", ("3 B D K", "B D (K + 1)", "4 B D (K + 2)"),
        lambda: _head(heads.Categorical(4), "categorical", 4, 5),
    ),
    Kernel(
        "head_log_prob, GaussianMixture(3)", f"B {B}, D {D}, K 9", ("3 B D K", "B D (K + 2)", "4 B D (K + 2)"),
        lambda: _head(heads.GaussianMixture(3), "gaussian_mixture", 9, 11),
    ),
]  # fmt: skip
