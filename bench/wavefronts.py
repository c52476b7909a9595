"""python -m bench.wavefronts: an OffsetNADE draws one image pixel by pixel, and along wavefronts."""

import argparse
import functools
import sys
from dataclasses import dataclass

import torch

from ar_fast import heads
from ar_fast.models import OffsetNADE
from ar_fast.models.sampling import Rows, make_request
from ar_fast.tasks._timing import interleave

from .run import environment
from .tables import duration


@dataclass(frozen=True)
class Case:
    """components: of a mixture of 256 levels; 0 is Bernoulli."""

    event_shape: tuple[int, ...]
    window: tuple[int, int]
    hidden_features: tuple[int, ...]
    components: int = 5

    def model(self) -> OffsetNADE:
        head = heads.LogisticMixture(self.components, levels=256) if self.components else heads.Bernoulli()
        return OffsetNADE(self.event_shape, self.hidden_features, self.window, "relu", head=head)


CASES = (
    Case((512, 512), (10, 10), (64, 64, 64)),
    Case((512, 512), (6, 6), (48, 32, 32)),
    Case((512, 512), (12, 10), (48,), components=0),
    Case((256, 256), (10, 10), (64,)),
    Case((3, 256, 256), (4, 4), (64,)),
    Case((3, 256, 256), (6, 6), (96, 64, 64), components=10),
    Case((32, 32), (4, 4), (64,)),
)
TINY = (Case((8, 9), (1, 2), (4, 3)), Case((2, 8, 9), (1, 1), (4,), components=0))


def multiply_adds(model: OffsetNADE) -> int:
    """Of one image, the taps outside of it counted too."""
    pixels = model.variables // model.grid[2]
    layers = sum(layer.weight.numel() for layer in model.layers)
    return pixels * (model.in_weight.numel() + model.grid[2] * layers + model.out_weight.numel())


@torch.no_grad()
def line(case: Case, seconds: float) -> str:
    torch.manual_seed(0)
    model = case.model()
    sampler = model._sampler(make_request(model, 1, None, 0, None, 0, None, None, False, 1.0))
    state, arguments = sampler.begin(Rows(1, None, None, None))
    draw = functools.partial(sampler.step, state, seed=0, start=0, stop=model.variables, **arguments)
    names = ("pixels", "wavefront")
    assert torch.equal(*(draw(algorithm=name)[0] for name in names))
    timings = interleave({name: functools.partial(draw, algorithm=name) for name in names}, seconds=seconds)
    pixels, wavefront = (timings[name].median for name in names)
    sizes = (" x ".join(map(str, sizes)) for sizes in (case.event_shape, case.window))
    head = f"LogisticMixture({case.components})" if case.components else "Bernoulli"
    cells = *sizes, ", ".join(map(str, case.hidden_features)), head, duration(pixels), duration(wavefront)
    rate = multiply_adds(model) / wavefront / 1e9
    return f"| {' | '.join(cells)} | {pixels / wavefront:.2f}x | {rate:.1f} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.wavefronts", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="time per figure, at least five turns (default: 1)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that all runs, measures nothing")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{environment(torch.device('cpu'))}\n")
    print("| image | window | H | head | pixel by pixel | along wavefronts | | billion multiply-adds a second |")
    print("|---|---|---|---|---:|---:|---:|---:|")
    for case in TINY if arguments.tiny else CASES:
        print(line(case, arguments.seconds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
