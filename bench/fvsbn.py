"""FVSBN: log_prob, its gradients, sampling."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ar_fast.models import FVSBN

from . import data, peers
from .cases import OURS, Built, Case, Contender, against, no_grad, relative_error
from .settings import Settings

PRODUCT = "F.linear(x, W * M), log p"
BEFOREHAND = "F.linear, masked beforehand, log p"
DENSE = "F.linear(x, W) alone"
PUSH = "loop over D, values pushed, in place"
GATHER = "loop over D, values gathered, in place"


class Parts:
    """A model with random weights, and these by position: weight (D outputs, D inputs), its mask and bias."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(12)
        batch, variables, _ = settings.nade
        self.x = data.digits(batch, variables)[0].to(settings.device)
        self.model = FVSBN(variables, device=settings.device)
        self.model.initialize_from_mean(data.digits(500, variables)[0].mean(0).clamp(0.01, 0.99).to(settings.device))
        with torch.no_grad():
            self.model.weight.copy_(data.normal(variables, variables) * 0.5 / variables**0.5)
        # The model stores the last variable first, and a row per input.
        self.weight = self.model.weight.detach().flip(0, 1).T.contiguous()
        self.bias = self.model.bias.detach().flip(0)
        self.mask = torch.ones_like(self.weight).tril(-1)
        self.masked = self.weight * self.mask

    def exact(self, x: Tensor) -> Tensor:
        """The log-likelihood in float64."""
        return peers.bernoulli_log_prob(F.linear(x.double(), self.masked.double(), self.bias.double()), x.double())


def _build_forward(settings: Settings) -> Built:
    parts = Parts(settings)
    x, bias = parts.x, parts.bias
    makers = {
        OURS: lambda: Contender(no_grad(lambda: parts.model.log_prob(x))),
        PRODUCT: lambda: Contender(
            no_grad(lambda: peers.bernoulli_log_prob(F.linear(x, parts.weight * parts.mask, bias), x))
        ),
        BEFOREHAND: lambda: Contender(no_grad(lambda: peers.bernoulli_log_prob(F.linear(x, parts.masked, bias), x))),
        # The yardstick: log p is not timed.
        DENSE: lambda: Contender(
            no_grad(lambda: F.linear(x, parts.masked, bias)), lambda logits: (peers.bernoulli_log_prob(logits, x),)
        ),
    }
    return Built(makers, against([parts.exact(x)]))


def _build_training(settings: Settings) -> Built:
    parts = Parts(settings)

    def plain(dtype: torch.dtype) -> Callable[[], tuple[Tensor, ...]]:
        x, mask = parts.x.to(dtype), parts.mask.to(dtype)
        weight, bias = (tensor.to(dtype).clone().requires_grad_() for tensor in (parts.weight, parts.bias))

        def run() -> tuple[Tensor, ...]:
            loss = -peers.bernoulli_log_prob(F.linear(x, weight * mask, bias), x).mean()
            return torch.autograd.grad(loss, [weight, bias])

        return run

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(-parts.model.log_prob(parts.x).mean(), [parts.model.weight, parts.model.bias])

    makers = {
        OURS: lambda: Contender(ours, lambda grads: (grads[0].flip(0, 1).T, grads[1].flip(0))),
        PRODUCT: lambda: Contender(plain(torch.float32), tuple),
    }
    return Built(makers, against(plain(torch.float64)()))


def _push_loop(parts: Parts) -> Callable[[], tuple[Tensor, Tensor]]:
    """Every drawn column into the logits of all variables: of those after it, that is, the others' weights are 0."""
    batch, variables = parts.x.shape
    rows = list(parts.masked.T.contiguous().unbind(0))
    state, drawn = parts.x.new_empty(batch, variables), parts.x.new_empty(variables, batch)

    def run() -> tuple[Tensor, Tensor]:
        state.copy_(parts.bias)
        for p, (row, column) in enumerate(zip(rows, drawn, strict=True)):
            torch.bernoulli(torch.sigmoid(state[:, p]), out=column)
            state.addr_(column, row)
        return drawn.T, state

    return no_grad(run)


def _gather_loop(parts: Parts) -> Callable[[], tuple[Tensor, Tensor]]:
    """The logits of one variable at a time, from the columns drawn before it."""
    batch, variables = parts.x.shape
    biases, rows = parts.bias[:, None].expand(-1, batch).contiguous(), list(parts.masked.unbind(0))
    logits, drawn = parts.x.new_empty(variables, batch), parts.x.new_empty(variables, batch)

    def run() -> tuple[Tensor, Tensor]:
        for p, (bias, row, column) in enumerate(zip(biases, rows, drawn, strict=True)):
            torch.addmv(bias, drawn[:p].T, row[:p], out=logits[p])
            torch.bernoulli(torch.sigmoid(logits[p]), out=column)
        return drawn.T, logits.T

    return no_grad(run)


def _build_sampling(settings: Settings) -> Built:
    parts = Parts(settings)
    batch = parts.x.shape[0]

    def error(values) -> float:
        x, log_prob = values
        return relative_error([log_prob], [parts.exact(x)])

    def judged(result: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, logits = result
        return x, peers.bernoulli_log_prob(logits, x)

    makers = {
        OURS: lambda: Contender(lambda: parts.model.sample(batch, seed=0, return_log_prob=True), tuple),
        PUSH: lambda: Contender(_push_loop(parts), judged),
        GATHER: lambda: Contender(_gather_loop(parts), judged),
    }
    return Built(makers, error)


def cases(settings: Settings) -> Iterator[Case]:
    batch, variables, _ = settings.nade
    sizes, name = f"B {batch}, D {variables}", data.digits(batch, variables)[1]
    forward = [OURS, PRODUCT, BEFOREHAND, DENSE]
    yield Case("FVSBN log_prob, forward", sizes, name, lambda: _build_forward(settings), forward)
    training = [OURS, PRODUCT]
    yield Case("FVSBN log_prob, forward + backward", sizes, name, lambda: _build_training(settings), training)
    sampling = [OURS, PUSH, GATHER]
    yield Case("FVSBN sampling", sizes, "biases of digits", lambda: _build_sampling(settings), sampling)
