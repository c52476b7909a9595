"""MADE with one hidden layer: forward, forward + backward, sampling."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ar_fast.models import MADE

from . import data, peers
from .cases import OURS, Built, Case, Contender, against, no_grad, relative_error
from .settings import Settings

PRODUCT = "F.linear(x, W * M)"
BEFOREHAND = "F.linear, masked beforehand"
PANELS = "GEMM panels, 8"
PASSES_PRODUCT = "D passes, W * M each"
PASSES = "D passes, masked beforehand"
COMPILED_PASSES = "torch.compile of the pass"
INCREMENTAL = "incremental loop, in place"
REPLAY = "incremental loop, CUDA graph"


class Parts:
    """A model, its weights and masks as plain tensors, and the same in float64."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(12)
        batch, variables, hidden = settings.made
        x, self.data = data.digits(batch, variables)
        self.x = x.to(settings.device)
        self.model = MADE(variables, [hidden], device=settings.device)
        self.model.initialize_from_mean(data.digits(500, variables)[0].mean(0).clamp(0.01, 0.99).to(settings.device))
        self.weights = [layer.weight.detach() for layer in self.model.layers]
        self.biases = [layer.bias.detach() for layer in self.model.layers]
        self.masks = [layer.mask.to_dense().float() for layer in self.model.layers]
        self.masked = [weight * mask for weight, mask in zip(self.weights, self.masks, strict=True)]

    def exact(self, x: Tensor) -> Tensor:
        """The logits in float64."""
        return network(x.double(), [w.double() for w in self.masked], [b.double() for b in self.biases])


def network(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return F.linear(torch.relu(F.linear(x, weights[0], biases[0])), weights[1], biases[1])


def product_network(x: Tensor, weights: list[Tensor], masks: list[Tensor], biases: list[Tensor]) -> Tensor:
    return network(x, [weight * mask for weight, mask in zip(weights, masks, strict=True)], biases)


def _build_forward(settings: Settings) -> Built:
    parts = Parts(settings)
    layers = parts.model.layers
    panels = [
        peers.Panels(w, b, layer.mask.extents, 8)
        for w, b, layer in zip(parts.weights, parts.biases, layers, strict=True)
    ]

    def eager(function: Callable[[], Tensor]) -> Callable[[], Contender]:
        return lambda: Contender(no_grad(function))

    makers = {
        OURS: eager(lambda: parts.model(parts.x).squeeze(-1)),
        PRODUCT: eager(lambda: product_network(parts.x, parts.weights, parts.masks, parts.biases)),
        BEFOREHAND: eager(lambda: network(parts.x, parts.masked, parts.biases)),
        PANELS: eager(lambda: panels[1].run(torch.relu(panels[0].run(parts.x)))),
    }
    return Built(makers, against([parts.exact(parts.x)]))


def _build_training(settings: Settings) -> Built:
    parts = Parts(settings)

    def plain(dtype: torch.dtype) -> Callable[[], tuple[Tensor, ...]]:
        x = parts.x.to(dtype)
        weights = [tensor.to(dtype).requires_grad_() for tensor in map(torch.clone, parts.weights)]
        biases = [tensor.to(dtype).requires_grad_() for tensor in map(torch.clone, parts.biases)]
        masks = [mask.to(dtype) for mask in parts.masks]

        def run() -> tuple[Tensor, ...]:
            loss = -peers.bernoulli_log_prob(product_network(x, weights, masks, biases), x).mean()
            return torch.autograd.grad(loss, [*weights, *biases])

        return run

    leaves = [layer.weight for layer in parts.model.layers] + [layer.bias for layer in parts.model.layers]

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(-parts.model.log_prob(parts.x).mean(), leaves)

    makers = {
        OURS: lambda: Contender(ours, tuple),
        PRODUCT: lambda: Contender(plain(torch.float32), tuple),
    }
    return Built(makers, against(plain(torch.float64)()))


class Incremental:
    """One hidden layer: keep its pre-activations, add one column of the first weights for every variable drawn."""

    def __init__(self, parts: Parts) -> None:
        batch, variables = parts.x.shape
        self.in_rows, self.out_rows = parts.masked[0].T.contiguous(), parts.masked[1]
        self.in_bias, self.out_biases = parts.biases[0], list(parts.biases[1].unbind(0))
        self.state = parts.x.new_empty(batch, self.in_rows.shape[1])
        self.hidden = torch.empty_like(self.state)
        self.logits = parts.x.new_empty(variables, batch)

    def sample(self) -> tuple[Tensor, Tensor]:
        self.state.copy_(self.in_bias)
        drawn = torch.empty_like(self.logits)
        for column, in_row, out_row, bias, logits in zip(
            drawn, self.in_rows, self.out_rows, self.out_biases, self.logits, strict=True
        ):
            torch.clamp_min(self.state, 0, out=self.hidden)
            torch.addmv(bias, self.hidden, out_row, out=logits)
            torch.bernoulli(torch.sigmoid(logits), out=column)
            self.state.addr_(column, in_row)
        return drawn.T, self.logits.T


def _passes(parts: Parts, evaluate: Callable[[Tensor], Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    def run() -> tuple[Tensor, Tensor]:
        x = torch.zeros_like(parts.x)
        for i in range(x.shape[1]):
            logits = evaluate(x)
            x[:, i] = torch.bernoulli(torch.sigmoid(logits[:, i]))
        return x, logits

    return no_grad(run)


def _build_sampling(settings: Settings) -> Built:
    parts = Parts(settings)
    batch = parts.x.shape[0]

    def error(values) -> float:
        x, log_prob = values
        return relative_error([log_prob], [peers.bernoulli_log_prob(parts.exact(x), x.double())])

    def judged(result: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, logits = result
        return x, peers.bernoulli_log_prob(logits, x)

    def compiled() -> Contender:
        evaluate = torch.compile(lambda x: network(x, parts.masked, parts.biases), dynamic=False)
        with peers.compile_guard(settings.compile_seconds), torch.no_grad():
            evaluate(parts.x)
        return Contender(_passes(parts, evaluate), judged)

    makers = {
        OURS: lambda: Contender(lambda: parts.model.sample(batch, seed=0, return_log_prob=True), tuple),
        PASSES_PRODUCT: lambda: Contender(
            _passes(parts, lambda x: product_network(x, parts.weights, parts.masks, parts.biases)), judged
        ),
        PASSES: lambda: Contender(_passes(parts, lambda x: network(x, parts.masked, parts.biases)), judged),
        COMPILED_PASSES: compiled,
        INCREMENTAL: lambda: Contender(no_grad(Incremental(parts).sample), judged),
        REPLAY: lambda: Contender(peers.GraphReplay(no_grad(Incremental(parts).sample)).run, judged),
    }
    return Built(makers, error)


def cases(settings: Settings) -> Iterator[Case]:
    batch, variables, hidden = settings.made
    sizes = f"B {batch}, {variables}-{hidden}-{variables}"
    name = data.digits(batch, variables)[1]
    yield Case(
        "MADE logits, forward", sizes, name, lambda: _build_forward(settings), [OURS, PRODUCT, BEFOREHAND, PANELS]
    )
    yield Case("MADE log_prob, forward + backward", sizes, name, lambda: _build_training(settings), [OURS, PRODUCT])
    sampling = [OURS, PASSES_PRODUCT, PASSES, INCREMENTAL]
    if settings.compile_seconds > 0:
        sampling.append(COMPILED_PASSES)
    if settings.device.type == "cuda":
        sampling.append(REPLAY)
    yield Case("MADE sampling", sizes, "output biases of digits", lambda: _build_sampling(settings), sampling)
