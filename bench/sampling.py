"""python -m bench.sampling: samples per second of NADE against the batch size, and what `sample` adds to the op."""

import argparse
import contextlib
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import ar_fast
from ar_fast import functional, heads, models, orderings
from ar_fast.models.sampling import Rows, make_request
from ar_fast.tasks._timing import interleave

from . import data, peers
from .cases import no_grad
from .run import environment
from .tables import duration, write_table

# D, H; the last is a 256 x 256 colour image.
EVENTS = ((784, 500), (3072, 512), (196_608, 512))
BATCHES = (1, 4, 16, 64, 128, 512)
# The loop takes a minute for an event this long: it is timed over the first variables and scaled up.
LOOP_VARIABLES = 4096


def _parameters(variables: int, hidden: int) -> dict[str, Tensor]:
    """Random weights; output biases of real digits' pixel frequencies, so that draws are about as sparse as digits."""
    frequency = data.digits(500, variables)[0].mean(0) if variables <= 4096 else data.digits(500, 784)[0].mean(0)
    frequency = frequency.repeat(-(-variables // len(frequency)))[:variables].clamp(0.01, 0.99)
    return {**data.nade_parameters(variables, hidden), "out_bias": frequency.logit()}


def _row(variables: int, hidden: int, batch: int, seconds: float) -> list[str]:
    parameters = _parameters(variables, hidden)
    state = parameters["in_bias"].expand(batch, -1).contiguous()
    weights = {name: parameters[name] for name in ("in_weight", "out_weight", "out_bias")}
    ones = functional.nade_sample(state, **weights, seed=0)[0].mean().item()
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    part = min(variables, LOOP_VARIABLES)
    first = {name: tensor if name == "in_bias" else tensor[:part] for name, tensor in parameters.items()}
    contenders = {
        "ar_fast": lambda: functional.nade_sample(state, **weights, seed=0),
        "bfloat16": lambda: functional.nade_sample(state, **half, seed=0),
        "loop": no_grad(peers.InPlaceLoop(state.new_zeros(batch, part), **first).sample),
    }
    timings = interleave(contenders, seconds=seconds, min_rounds=3)
    ours, bfloat16, loop = (timings[name].median for name in contenders)
    loop *= variables / part
    return [
        f"{variables}, {hidden}", str(batch), f"{100 * ones:.0f}%", duration(ours), f"{batch / ours:.3g}",
        f"{batch / bfloat16:.3g}", f"{batch / loop:.3g}", f"{loop / ours:.1f}",
    ]  # fmt: skip


def _million(hidden: int, progress: bool) -> str:
    """One sample of 10^6 variables through the model, with its progress bar."""
    model = models.NADE(10**6, hidden_features=hidden)
    with torch.no_grad():
        model.out_bias.fill_(math.log(0.13 / 0.87))
    start = time.perf_counter()
    sample = model.sample(1, seed=0, progress=progress)
    seconds = time.perf_counter() - start
    return (
        f"One event of 1,000,000 variables, H = {hidden}, through `NADE.sample(1, progress=True)`: "
        f"{duration(seconds)}, {100 * sample.mean().item():.0f}% ones."
    )


def _models(tiny: bool) -> dict[str, models.AutoregressiveModel]:
    """Models of very many variables, or of very many parameters, each in a random order."""
    shrink = 1000 if tiny else 1
    made = {}
    for name, kind, shape, hidden, head in (
        ("NADE (3, 256, 256), H = 16", models.NADE, (3, 256, 256 // (100 if tiny else 1)), 16, None),
        ("NADE 1,000,000, H = 128", models.NADE, 10**6 // shrink, 128, None),
        ("DeepNADE 65,536, [64]", models.DeepNADE, 65_536 // shrink, [64], None),
        ("NADE 3,072, H = 64, Categorical(256)", models.NADE, 3072 // shrink, 64, heads.Categorical(256)),
    ):
        model = kind(shape, hidden, head=head, order=orderings.random(shape, seed=1))
        if head is None and kind is models.NADE:
            with torch.no_grad():
                model.out_bias.fill_(math.log(0.13 / 0.87))
        made[name] = model
    return made


@torch.no_grad()
def _model_row(name: str, model: models.AutoregressiveModel, seconds: float, frozen: bool = False) -> list[str]:
    """``sample`` beside one call of its op over all positions, with everything that it takes made beforehand."""
    request = make_request(model, 1, None, 0, None, 0, None, None, False, 1.0)
    sampler = model._sampler(request)
    state, arguments = sampler.begin(Rows(1, None, None, None))
    arguments = {"given": None, "known": None, "first_index": 0, "temperature": 1.0, **arguments}
    contenders = {
        "op": lambda: sampler.step(state, seed=0, start=0, stop=model.variables, **arguments),
        "prepare": lambda: model._sampler(request),
        "sample": lambda: model.sample(1, seed=0),
    }
    with contextlib.ExitStack() as scopes:
        if frozen:
            scopes.enter_context(ar_fast.frozen(model))
        timings = interleave(contenders, seconds=seconds, min_rounds=3)
    op, prepare, sample = (timings[name].median for name in contenders)
    return [name + ", frozen" * frozen, duration(op), duration(prepare), duration(sample), f"{sample / op:.2f}"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sampling", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="time per figure, at least three turns (default: 1)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that all runs, measures nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    arguments = parser.parse_args()
    where = environment(torch.device("cpu"))
    header = ["D, H", "B", "ones", "a call", "samples/s", "bfloat16 weights", "loop, in place", "loop / ar_fast"]
    events, batches = (((16, 5), (40, 7)), (1, 6)) if arguments.tiny else (EVENTS, BATCHES)
    rows = []
    for variables, hidden in events:
        for batch in batches:
            if variables * batch > 196_608 * 64:
                continue
            rows.append(_row(variables, hidden, batch, arguments.seconds))
            print("  ".join(rows[-1]), flush=True)
    million = _million(8 if arguments.tiny else 128, progress=not arguments.tiny)
    note = (
        f"{million}\n\nDraws use float32 arithmetic for both kinds of weights. The loop draws with every buffer made "
        "beforehand and every step in place. All three take turns; medians. For the loop, events beyond "
        f"{LOOP_VARIABLES} variables are timed over the first "
        f"{LOOP_VARIABLES} and scaled up, which flatters it: their weights stay in the cache."
    )
    path = write_table(arguments.out, "cpu-sampling", "NADE sampling", where, header, rows, note)
    print(path.read_text())
    made = _models(arguments.tiny)
    rows = [_model_row(name, model, arguments.seconds) for name, model in made.items()]
    name = next(name for name in made if name.startswith("DeepNADE"))
    rows.append(_model_row(name, made[name], arguments.seconds, frozen=True))
    header = ["model", "the op's one call", "prepared for each request", "model.sample(1)", "sample / op"]
    note = (
        "In a random order. The op is called with what the model prepares for a request; all take turns; medians. "
        "Frozen: within `ar_fast.frozen(model)`, which keeps the weights that a DeepNADE gathers for each request."
    )
    path = write_table(arguments.out, "cpu-sampling-models", "Sampling by a model", where, header, rows, note)
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
