"""python -m bench.reference --device cuda: the time of the reference cases, beside their floors, goals and peers.

Times are of CUDA events around single calls: warm, and with the L2 cache flushed before each. Median, 10th and 90th
percentile. The results are written after every case, so that a run that is cut off leaves those it had. On the CPU,
for tests, the clock of the host stands in for the events.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ar_fast import functional
from ar_fast.models import MADE

from . import clocks, data, peers, rnn
from .cases import no_grad
from .made import network
from .masked_linear import staircase
from .nade import _gradients, _of_logits
from .prediction.cases import CASES, Case
from .prediction.table import GOALS
from .run import environment
from .settings import Settings

OURS = "ar_fast"
# Beyond it a CUDA graph of the loop has too many nodes.
MOST_GRAPH_STEPS = 2000
# Rows of a product over the strips of a staircase, for a product of cuBLAS each.
STRIPS = (8, 16)


@dataclass(frozen=True)
class Work:
    """What a case must do at least: bytes that are read or written once, and floating-point operations."""

    bytes: float
    flops: float


Run = Callable[[], object]


@dataclass(frozen=True)
class Steps:
    """A run of `count` steps, whose time is that of one."""

    run: Run
    count: int

    def __call__(self) -> object:
        return self.run()


def work(case: Case) -> Work:
    size = 2 if case.dtype == "bfloat16" else 4
    if case.kind.startswith("nade"):
        batch, variables, hidden = case.batch, case.variables, case.hidden
        weights = 2 * variables * hidden * size
        # A product for the parameters at every position, a sum for every input that is not zero.
        flops = batch * variables * hidden * 2 * (1 + case.ones)
        passes = 3 if case.kind == "nade forward+backward" else 1
        return Work(weights * (2 if passes == 3 else 1) + batch * variables * size, flops * passes)
    # Half of the weights are masked, and need not be read.
    products = [inputs * outputs / 2 for inputs, outputs in zip(case.layers, case.layers[1:], strict=False)]
    ends = case.batch * (case.layers[0] + case.layers[-1])
    return Work((sum(products) + ends) * size, 2 * case.batch * sum(products))


def _graph(device: torch.device, function: Run) -> Run:
    """The replay of a CUDA graph of the function; without CUDA the function."""
    return peers.GraphReplay(function).run if device.type == "cuda" else function


def _nade(case: Case, device: torch.device) -> Iterator[tuple[str, Callable[[], Run]]]:
    batch, variables, hidden = case.batch, case.variables, case.hidden
    parameters = {name: value.to(device) for name, value in data.nade_parameters(variables, hidden).items()}
    x = (data.digits if case.ones < 0.3 else data.uniform_reals)(batch, variables)[0].to(device)
    if case.kind == "nade sampling":
        frequency = torch.full((variables,), case.ones, device=device)
        parameters["out_bias"] = frequency.clamp(0.01, 0.99).logit()
        weights = {name: parameters[name] for name in ("in_weight", "out_weight", "out_bias")}
        state = parameters["in_bias"].expand(batch, -1).contiguous()
        yield OURS, lambda: no_grad(lambda: functional.nade_sample(state, **weights, seed=0))

        def loop() -> Run:
            return no_grad(peers.InPlaceLoop(torch.zeros_like(x), **parameters).sample)

    elif case.kind == "nade forward+backward":
        yield OURS, lambda: _gradients(functional.nade_log_prob, x, parameters)

        def loop() -> Run:
            return _gradients(_of_logits(peers.nade_loop), x, parameters)

    else:
        yield OURS, lambda: no_grad(lambda: functional.nade_log_prob(x, **parameters))

        def loop() -> Run:
            in_place = peers.InPlaceLoop(x, **parameters)
            return no_grad(lambda: peers.bernoulli_log_prob(in_place.run(), x))

    if variables <= MOST_GRAPH_STEPS:
        yield "loop over D, CUDA graph", lambda: _graph(device, loop())


def _made(case: Case, device: torch.device) -> Iterator[tuple[str, Callable[[], Run]]]:
    torch.manual_seed(12)
    model = MADE(case.variables, list(case.layers[1:-1]), device=device)
    yield OURS, lambda: no_grad(lambda: model.sample(case.batch, seed=0))
    masked = [layer.weight.detach() * layer.mask.to_dense() for layer in model.layers]
    biases = [layer.bias.detach() for layer in model.layers]

    def evaluate(x: Tensor) -> Tensor:
        if len(masked) == 2:
            return network(x, masked, biases)
        for weight, bias in zip(masked[:-1], biases[:-1], strict=True):
            x = torch.relu(F.linear(x, weight, bias))
        return F.linear(x, masked[-1], biases[-1])

    x = torch.zeros(case.batch, case.variables, device=device)

    def one_pass() -> None:
        logits = evaluate(x)
        torch.bernoulli(torch.sigmoid(logits[:, 0]), out=x[:, 0])

    def passes() -> Run:
        run = _graph(device, no_grad(one_pass))
        return lambda: [run() for _ in range(case.variables)]

    yield "D passes, masked beforehand, a CUDA graph each", passes


def _linear(case: Case, device: torch.device) -> Iterator[tuple[str, Callable[[], Run]]]:
    inputs, outputs = case.layers
    dtype = getattr(torch, case.dtype)
    x = data.normal(case.batch, inputs, seed=case.batch).to(device, dtype)
    weight = (data.normal(outputs, inputs, seed=9) / inputs**0.5).to(device, dtype)
    bias = data.normal(outputs, seed=10).to(device, dtype)
    mask = staircase(inputs, outputs).to(device)
    yield OURS, lambda: no_grad(lambda: functional.masked_linear(x, weight, mask, bias))
    masked = weight * mask.to_dense().to(dtype)
    yield "one dense product, masked beforehand", lambda: no_grad(lambda: F.linear(x, masked, bias))
    for count in STRIPS:
        panels = peers.Panels(weight, bias, mask.extents, count)
        yield f"{count} strips of the staircase", lambda panels=panels: no_grad(lambda: panels.run(x))


def _rnn(case: Case, device: torch.device) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Ours in one call of many steps, and torch's own GRU, cuDNN's on CUDA, step by step; the time of a step."""
    batch, hidden, dtype = case.batch, case.hidden, getattr(torch, case.dtype)
    parts = rnn.Parts("gru", batch, hidden, 1, case.steps, dtype).to(Settings(device))
    yield OURS, lambda: Steps(no_grad(parts.ours), case.steps)
    gru = torch.nn.GRU(rnn.VOCABULARY, hidden, device=device, dtype=dtype)
    head = torch.nn.Linear(hidden, rnn.VOCABULARY, device=device, dtype=dtype)
    symbol = torch.zeros(batch, dtype=torch.long, device=device)
    state = torch.zeros(1, batch, hidden, device=device, dtype=dtype)

    def step() -> None:
        out, after = gru(F.one_hot(symbol, rnn.VOCABULARY).to(dtype)[None], state)
        noise = -torch.empty(batch, rnn.VOCABULARY, device=device).exponential_().log()
        symbol.copy_((head(out[0]).float() + noise).argmax(-1))
        state.copy_(after)

    yield "nn.GRU step by step, CUDA graph", lambda: _graph(device, no_grad(step))


def contenders(case: Case, device: torch.device) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Names, and what makes the call; ours first where there is one."""
    if case.name.startswith("rnn_sample"):
        return _rnn(case, device)
    kinds = {"made sampling": _made, "masked_linear": _linear}
    return kinds.get(case.kind, _nade)(case, device)


class Clock:
    """Times single calls, seconds: by CUDA events on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self.cache = None
        if self.cuda:
            properties = torch.cuda.get_device_properties(device)
            size = getattr(properties, "L2_cache_size", 0) or 64 << 20
            self.cache = torch.empty(2 * size, dtype=torch.int8, device=device)

    def once(self, run: Run, flushed: bool) -> float:
        if not self.cuda:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        if flushed:
            self.cache.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    def measure(self, run: Run, flushed: bool, seconds: float, fewest: int = 5, most: int = 200) -> dict:
        """Microseconds: median, 10th and 90th percentile."""
        steps = run.count if isinstance(run, Steps) else 1
        self.once(run, flushed)
        start, times = time.perf_counter(), []
        while len(times) < fewest or (len(times) < most and time.perf_counter() - start < seconds):
            times.append(1e6 * self.once(run, flushed) / steps)
        tenths = statistics.quantiles(times, n=10, method="inclusive")
        return {"median_us": statistics.median(times), "p10_us": tenths[0], "p90_us": tenths[-1], "calls": len(times)}


def measure(case: Case, device: torch.device, seconds: float) -> dict:
    """One case: all its contenders, and the clocks before and after."""
    clock, found = Clock(device), []
    before = clocks.state() if clock.cuda else None
    for name, make in contenders(case, device):
        row: dict = {"contender": name}
        try:
            run = make()
            row["warm"] = clock.measure(run, False, seconds)
            row["flushed"] = clock.measure(run, True, seconds)
            if case.kind:
                least, second = work(case), row["warm"]["median_us"] * 1e-6
                row |= {"bytes_per_s": least.bytes / second, "flop_per_s": least.flops / second}
        except Exception as failure:  # a peer that does not run here; ours shows as one too, and main ends with 1
            row["failed"] = f"{type(failure).__name__}: {str(failure).strip().splitlines()[0][:200]}"
        found.append(row)
        run = None
        gc.collect()
    result = {"case": case.name, "contenders": found}
    if before is not None:
        result |= {"before": before, "after": clocks.state()}
    return result


def tiny(case: Case) -> Case:
    """A case small enough to show on the CPU that all runs."""
    return replace(
        case,
        batch=min(case.batch, 3),
        variables=min(case.variables, 20),
        hidden=min(case.hidden, 8),
        steps=min(case.steps, 20),
        layers=tuple(min(layer, 20) for layer in case.layers),
    )


def markdown(results: list[dict], where: dict) -> str:
    goals = {goal["case"]: goal for goal in json.loads(GOALS.read_text())}
    lines = ["# Reference cases", "", *(f"- {key}: {value}" for key, value in where.items()), ""]
    lines += [
        "Microseconds: median (10th to 90th percentile), warm and with L2 flushed. Bytes and operations are the least",
        "that the work takes, over the warm median.",
        "",
        "| case | contender | warm | flushed | GB/s | TFLOP/s | floor | goal |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]

    def cell(timing: dict) -> str:
        return f"{timing['median_us']:.4g} ({timing['p10_us']:.4g} to {timing['p90_us']:.4g})"

    slowed = []
    for result in results:
        goal = goals.get(result["case"], {})
        for row in result["contenders"]:
            if "failed" in row:
                lines.append(f"| {result['case']} | {row['contender']} | failed: {row['failed']} | | | | | |")
                continue
            rate = [f"{row[k] / s:.4g}" if k in row else "" for k, s in (("bytes_per_s", 1e9), ("flop_per_s", 1e12))]
            bounds = [str(goal.get(key, "")) for key in ("floor_us", "goal_us")]
            cells = [result["case"], row["contender"], cell(row["warm"]), cell(row["flushed"]), *rate, *bounds]
            lines.append(f"| {' | '.join(cells)} |")
        for moment in ("before", "after"):
            if result.get(moment, {}).get("slowed by"):
                slowed.append(f"- {result['case']}, {moment}: {', '.join(result[moment]['slowed by'])}")
    return "\n".join([*lines, "", *(["The GPU was slowed down:", "", *slowed] if slowed else [])]).rstrip() + "\n"


def write(directory: Path, results: list[dict], where: dict) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "reference.json").write_text(json.dumps({"environment": where, "results": results}, indent=1) + "\n")
    (directory / "reference.md").write_text(markdown(results, where))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.reference", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=0.25, help="per contender, warm and flushed each")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no case begins")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that all runs, measures nothing")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench.reference: --device cuda was asked for, but torch sees no CUDA device", file=sys.stderr)
        return 2
    where, results, failed, start = environment(device), [], False, time.perf_counter()
    for case in CASES:
        if time.perf_counter() - start > arguments.budget:
            print(f"no time left for {case.name}", flush=True)
            continue
        print(f"... {case.name}", flush=True)
        result = measure(tiny(case) if arguments.tiny else case, device, arguments.seconds)
        results.append(result)
        write(arguments.out, results, where)
        for row in result["contenders"]:
            failed |= row["contender"] == OURS and "failed" in row
            print(f"    {row['contender']}: {row.get('failed') or row['warm']['median_us']}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
