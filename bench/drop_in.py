"""python -m bench.drop_in: flows of other libraries, as they are and accelerated: density, training step, sampling."""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import ar_fast
from ar_fast.tasks._timing import interleave

from . import data
from .cases import no_grad, relative_error
from .run import environment
from .tables import duration, write_table


@dataclass(frozen=True)
class Flow:
    """A flow of a library, its density and its inverse of noise, both of (flow, values)."""

    library: str
    sizes: str
    variables: int
    batches: tuple[int, ...]
    make: Callable[[], nn.Module]
    log_prob: Callable[[nn.Module, Tensor], Tensor]
    sample: Callable[[nn.Module, Tensor], Tensor]


def _zuko(variables: int, hidden: tuple[int, ...], transforms: int, batches: tuple[int, ...], kind: str) -> Flow:
    import zuko

    return Flow(
        f"zuko {kind}",
        f"D {variables}, {hidden} x {transforms}",
        variables,
        batches,
        lambda: getattr(zuko.flows, kind)(variables, transforms=transforms, hidden_features=hidden),
        lambda flow, x: flow().log_prob(x),
        lambda flow, z: flow().transform.inv(z),
    )


def _nflows(variables: int, hidden: int, batches: tuple[int, ...]) -> Flow:
    from nflows.transforms import MaskedAffineAutoregressiveTransform

    return Flow(
        "nflows affine",
        f"D {variables}, {hidden} x 2 blocks",
        variables,
        batches,
        lambda: MaskedAffineAutoregressiveTransform(variables, hidden, num_blocks=2),
        lambda flow, x: _normal(*flow(x)),
        lambda flow, z: flow.inverse(z)[0],
    )


def _normflows(variables: int, hidden: int, batches: tuple[int, ...]) -> Flow:
    """Its density goes through the inverse."""
    import normflows

    def make() -> nn.Module:
        layers = [normflows.flows.MaskedAffineAutoregressive(variables, hidden) for _ in range(2)]
        return normflows.NormalizingFlow(normflows.distributions.DiagGaussian(variables, trainable=False), layers)

    sizes = f"D {variables}, {hidden} x 2 blocks x 2"
    return Flow(
        "normflows affine",
        sizes,
        variables,
        batches,
        make,
        lambda flow, x: flow.log_prob(x),
        lambda flow, z: flow.forward(z),
    )


def _pyro(variables: int, hidden: int, batches: tuple[int, ...]) -> Flow:
    """The density of new data goes through the inverse, and drawing does not."""
    from pyro.distributions import Normal, TransformedDistribution
    from pyro.distributions.transforms import affine_autoregressive

    noise = Normal(torch.zeros(variables), torch.ones(variables)).to_event(1)

    def log_prob(flow: nn.Module, x: Tensor) -> Tensor:
        # New data each time: pyro keeps what it last inverted.
        return TransformedDistribution(noise, [flow]).log_prob(x.clone())

    return Flow(
        "pyro affine",
        f"D {variables}, ({hidden},)",
        variables,
        batches,
        lambda: affine_autoregressive(variables, [hidden]),
        log_prob,
        lambda flow, z: flow._call(z),
    )


def _normal(z: Tensor, log_det: Tensor) -> Tensor:
    return log_det - z.square().sum(-1) / 2


def flows(tiny: bool) -> Iterator[Flow]:
    if tiny:
        yield _zuko(3, (8, 8), 2, (2,), "MAF")
        yield _nflows(3, 8, (2,))
        yield _normflows(3, 8, (2,))
        yield _pyro(3, 8, (2,))
        return
    small = (1, 8, 20, 64, 256, 1000, 4096)
    yield _zuko(5, (50, 50), 5, small, "MAF")
    yield _zuko(8, (64, 64), 3, small, "MAF")
    yield _zuko(64, (512, 512), 5, (1, 64, 256), "MAF")
    yield _zuko(32, (128, 128), 3, (1, 64, 256), "NSF")
    yield _nflows(64, 512, (1, 64, 256))
    yield _normflows(32, 128, (1, 64, 256))
    yield _pyro(64, 193, (1, 64, 256))


def _step(flow: nn.Module, log_prob: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> None:
    flow.zero_grad()
    (-log_prob(flow, x).mean()).backward()


def rows(flow: Flow, seconds: float) -> Iterator[list[str]]:
    """For each batch size and kind of work: the original's time, the accelerated one's, and their ratio."""
    torch.manual_seed(0)
    original = flow.make()
    fast = ar_fast.accelerate(copy.deepcopy(original))
    print(ar_fast.acceleration_report(fast), file=sys.stderr)
    for batch in flow.batches:
        x = data.normal(batch, flow.variables, seed=1)
        for call in (flow.log_prob, flow.sample):
            error = relative_error([call(fast, x)], [call(original, x)])
            assert error < 1e-3, f"{flow.library}, {flow.sizes}, B {batch}: off by {error}"
        contenders = {}
        for name, own in (("original", original), ("ar_fast", fast)):
            contenders[name, "log_prob"] = no_grad(lambda own=own, x=x: flow.log_prob(own, x))
            contenders[name, "step"] = lambda own=own, x=x: _step(own, flow.log_prob, x)
            contenders[name, "sample"] = no_grad(lambda own=own, x=x: flow.sample(own, x))
        timings = interleave(contenders, seconds=seconds, min_rounds=3)
        cells = []
        for work in ("log_prob", "step", "sample"):
            before, after = timings["original", work].median, timings["ar_fast", work].median
            cells.append(f"{duration(before)} -> {duration(after)} ({before / after:.2f}x)")
        yield [flow.library, flow.sizes, str(batch), *cells]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.drop_in", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="time per figure, at least three turns (default: 1)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that all runs, measures nothing")
    parser.add_argument("--library", help="only the flows whose library's name begins with this")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    chosen = parser.parse_args(arguments)
    found = []
    for flow in flows(chosen.tiny):
        if chosen.library is None or flow.library.startswith(chosen.library):
            found += rows(flow, chosen.seconds)
    header = ["flow", "sizes", "B", "log_prob", "training step", "sampling"]
    note = (
        "The original and its accelerated copy take turns in one process, float32; medians. The density of normflows "
        "and of pyro goes through the inverse, that of zuko and nflows does not; sampling is the other direction."
    )
    where = environment(torch.device("cpu"))
    path = write_table(chosen.out, "cpu-drop_in", "Flows of other libraries", where, header, found, note)
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
