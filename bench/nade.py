"""NADE: log-likelihood forward, forward + backward, sampling."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ar_fast import functional

from . import data, peers
from .cases import OURS, Built, Case, Contender, against, no_grad, relative_error
from .settings import Settings

LOOP = "loop over D"
PLAIN = "loop over D, indexing"
IN_PLACE = "loop, in place"
COMPILED = f"torch.compile, {peers.COMPILED_STEPS} steps"
CUMSUM = "(B, D, H) cumsum"
REPLAY = "loop, CUDA graph"


def _loss(log_prob: Tensor) -> Tensor:
    return -log_prob.mean()


def _gradients(log_prob: Callable[..., Tensor], x: Tensor, parameters: dict[str, Tensor]) -> Callable[[], tuple]:
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(_loss(log_prob(x, **leaves)), list(leaves.values()))

    return run


def _of_logits(logits: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, **parameters: peers.bernoulli_log_prob(logits(x, **parameters), x)


def _compiled(warm: Callable[[], object], settings: Settings) -> None:
    with peers.compile_guard(settings.compile_seconds):
        warm()


def _build_log_prob(x: Tensor, parameters: dict[str, Tensor], settings: Settings) -> Built:
    exact = {name: value.double() for name, value in parameters.items()}
    reference = peers.bernoulli_log_prob(peers.nade_loop(x.double(), **exact), x.double())

    def compiled() -> Contender:
        loop = peers.CompiledLoop()
        run = no_grad(lambda: peers.bernoulli_log_prob(loop.run(x, **parameters), x))
        _compiled(run, settings)
        return Contender(run, lambda y: (y,))

    def in_place() -> Contender:
        loop = peers.InPlaceLoop(x, **parameters)
        return Contender(no_grad(lambda: peers.bernoulli_log_prob(loop.run(), x)))

    def replay() -> Contender:
        loop = peers.InPlaceLoop(x, **parameters)
        return Contender(peers.GraphReplay(no_grad(lambda: peers.bernoulli_log_prob(loop.run(), x))).run)

    def eager(log_prob: Callable[..., Tensor]) -> Callable[[], Contender]:
        return lambda: Contender(no_grad(lambda: log_prob(x, **parameters)))

    makers = {
        OURS: eager(functional.nade_log_prob),
        LOOP: eager(_of_logits(peers.nade_loop)),
        IN_PLACE: in_place,
        COMPILED: compiled,
        CUMSUM: eager(_of_logits(peers.nade_cumsum)),
        REPLAY: replay,
    }
    return Built(makers, against([reference]))


def _build_training(x: Tensor, parameters: dict[str, Tensor], settings: Settings) -> Built:
    exact = {name: value.double() for name, value in parameters.items()}
    reference = _gradients(_of_logits(peers.nade_loop), x.double(), exact)()

    def eager(log_prob: Callable[..., Tensor]) -> Callable[[], Contender]:
        return lambda: Contender(_gradients(log_prob, x, parameters), tuple)

    def compiled() -> Contender:
        run = _gradients(_of_logits(peers.CompiledLoop().run), x, parameters)
        _compiled(run, settings)
        return Contender(run, tuple)

    def replay() -> Contender:
        return Contender(peers.GraphReplay(_gradients(_of_logits(peers.nade_loop), x, parameters)).run, tuple)

    makers = {
        OURS: eager(functional.nade_log_prob),
        LOOP: eager(_of_logits(peers.nade_loop)),
        PLAIN: eager(_of_logits(peers.nade_plain_loop)),
        COMPILED: compiled,
        CUMSUM: eager(_of_logits(peers.nade_cumsum)),
        REPLAY: replay,
    }
    return Built(makers, against(reference))


def _build_sampling(batch: int, parameters: dict[str, Tensor]) -> Built:
    """Contenders draw different images: each is judged by the log-likelihood that it gives to its own."""
    exact = {name: value.double() for name, value in parameters.items()}
    state = parameters["in_bias"].expand(batch, -1).contiguous()
    weights = {name: parameters[name] for name in ("in_weight", "out_weight", "out_bias")}
    blank = state.new_zeros(batch, weights["out_bias"].numel())

    def error(values) -> float:
        x, log_prob = values
        return relative_error([log_prob], [peers.bernoulli_log_prob(peers.nade_loop(x.double(), **exact), x.double())])

    def ours() -> Contender:
        def run() -> tuple[Tensor, ...]:
            return functional.nade_sample(state, **weights, seed=0)

        return Contender(no_grad(run), lambda result: (result[0], result[1]))

    def judged(result: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, logits = result
        return x, peers.bernoulli_log_prob(logits, x)

    def replay() -> Contender:
        return Contender(peers.GraphReplay(no_grad(peers.InPlaceLoop(blank, **parameters).sample)).run, judged)

    def in_place() -> Contender:
        return Contender(no_grad(peers.InPlaceLoop(blank, **parameters).sample), judged)

    return Built({OURS: ours, IN_PLACE: in_place, REPLAY: replay}, error)


def cases(settings: Settings) -> Iterator[Case]:
    batch, variables, hidden = settings.nade
    device = settings.device
    parameters = {name: value.to(device) for name, value in data.nade_parameters(variables, hidden).items()}
    sizes = f"B {batch}, D {variables}, H {hidden}"
    replay = [REPLAY] if device.type == "cuda" else []
    compiled = [COMPILED] if settings.compile_seconds > 0 else []
    for make in (data.digits, data.uniform_reals):
        x, name = make(batch, variables)
        x = x.to(device)
        forward = [OURS, LOOP, IN_PLACE, *compiled, CUMSUM, *replay]
        training = [OURS, LOOP, PLAIN, *compiled, *([CUMSUM] if settings.full else []), *replay]
        yield Case("NADE log_prob, forward", sizes, name, lambda x=x: _build_log_prob(x, parameters, settings), forward)
        yield Case(
            "NADE log_prob, forward + backward",
            sizes,
            name,
            lambda x=x: _build_training(x, parameters, settings),
            training,
        )
    # The output biases of real digits' pixel frequencies: samples are about as sparse as digits.
    frequency = data.digits(500, variables)[0].mean(0).clamp(0.01, 0.99).to(device)
    sparse = {**parameters, "out_bias": frequency.logit()}
    yield Case(
        "NADE sampling",
        sizes,
        "output biases of digits",
        lambda: _build_sampling(batch, sparse),
        [OURS, IN_PLACE, *replay],
    )
    yield Case(
        "NADE sampling",
        sizes,
        "output biases 0",
        lambda: _build_sampling(batch, {**parameters, "out_bias": data.normal(variables, seed=8).to(device) * 0.1}),
        [OURS, IN_PLACE, *replay],
    )
