"""What people use without ar_fast, each written as well as plain PyTorch allows.

Shapes are those of `ar_fast.functional`: x (B, D), in_weight and out_weight (D, H), in_bias (H), out_bias (D).
"""

import contextlib
import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# torch.compile unrolls a loop: 14 steps compile in half a minute, all 784 do not finish in a quarter of an hour.
COMPILED_STEPS = 14


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """(B, D), (B, D) -> (B,), summed in float64."""
    return (x * logits - F.softplus(logits)).sum(1, dtype=torch.float64)


def nade_loop(x: Tensor, in_weight: Tensor, in_bias: Tensor, out_weight: Tensor, out_bias: Tensor) -> Tensor:
    """The differentiable loop over D. Rows come from unbind, whose gradient is one stack. Returns the logits."""
    state, logits = in_bias.expand(x.shape[0], -1), []
    for column, in_row, out_row in zip(x.unbind(1), in_weight.unbind(0), out_weight.unbind(0), strict=True):
        logits.append(torch.sigmoid(state) @ out_row)
        state = torch.addr(state, column, in_row)
    return torch.stack(logits, 1) + out_bias


def nade_plain_loop(x: Tensor, in_weight: Tensor, in_bias: Tensor, out_weight: Tensor, out_bias: Tensor) -> Tensor:
    """The same as it is usually written: rows by index, whose gradient fills a (D, H) tensor of zeros at every step."""
    state, logits = in_bias.expand(x.shape[0], -1), []
    for i in range(x.shape[1]):
        logits.append(torch.sigmoid(state) @ out_weight[i] + out_bias[i])
        state = state + x[:, i : i + 1] * in_weight[i]
    return torch.stack(logits, 1)


class InPlaceLoop:
    """The loop over D with every buffer made beforehand and every step in place, for use without gradients."""

    def __init__(self, x: Tensor, in_weight: Tensor, in_bias: Tensor, out_weight: Tensor, out_bias: Tensor) -> None:
        self.columns = x.T.contiguous()
        self.in_weight, self.in_bias, self.out_weight, self.out_bias = in_weight, in_bias, out_weight, out_bias
        self.state = x.new_empty(x.shape[0], in_weight.shape[1])
        self.hidden = torch.empty_like(self.state)
        self.logits = torch.empty_like(self.columns)
        self.biases = list(out_bias.unbind(0))

    def run(self) -> Tensor:
        """The logits, (B, D)."""
        self.state.copy_(self.in_bias)
        for column, in_row, out_row, logits in zip(
            self.columns, self.in_weight, self.out_weight, self.logits, strict=True
        ):
            torch.sigmoid(self.state, out=self.hidden)
            torch.mv(self.hidden, out_row, out=logits)
            self.state.addr_(column, in_row)
        return self.logits.T + self.out_bias

    def sample(self) -> tuple[Tensor, Tensor]:
        """Draws B rows: x (B, D) and the logits that they were drawn from, (B, D)."""
        self.state.copy_(self.in_bias)
        drawn = torch.empty_like(self.columns)
        for column, in_row, out_row, bias, logits in zip(
            drawn, self.in_weight, self.out_weight, self.biases, self.logits, strict=True
        ):
            torch.sigmoid(self.state, out=self.hidden)
            torch.addmv(bias, self.hidden, out_row, out=logits)
            torch.bernoulli(torch.sigmoid(logits), out=column)
            self.state.addr_(column, in_row)
        return drawn.T, self.logits.T


def nade_cumsum(x: Tensor, in_weight: Tensor, in_bias: Tensor, out_weight: Tensor, out_bias: Tensor) -> Tensor:
    """No loop: the (B, D, H) tensor of all hidden states at once. Returns the logits."""
    steps = x[:, :-1, None] * in_weight[:-1]
    states = torch.cat([in_bias.expand(x.shape[0], 1, -1), steps], 1).cumsum(1)
    return torch.einsum("bdh,dh->bd", torch.sigmoid(states), out_weight) + out_bias


def _steps(state: Tensor, columns: Tensor, in_rows: Tensor, out_rows: Tensor) -> tuple[Tensor, Tensor]:
    logits = []
    for i in range(in_rows.shape[0]):
        logits.append((torch.sigmoid(state) * out_rows[i]).sum(1))
        state = state + columns[:, i, None] * in_rows[i]
    return state, torch.stack(logits, 1)


class CompiledLoop:
    """torch.compile of COMPILED_STEPS steps of the loop at a time; a tail of another length is one more compilation."""

    def __init__(self) -> None:
        self.steps = torch.compile(_steps, dynamic=False)

    def run(self, x: Tensor, in_weight: Tensor, in_bias: Tensor, out_weight: Tensor, out_bias: Tensor) -> Tensor:
        state, logits = in_bias.expand(x.shape[0], -1).contiguous(), []
        for columns, in_rows, out_rows in zip(
            x.split(COMPILED_STEPS, 1), in_weight.split(COMPILED_STEPS), out_weight.split(COMPILED_STEPS), strict=True
        ):
            state, part = self.steps(state, columns.contiguous(), in_rows.contiguous(), out_rows.contiguous())
            logits.append(part)
        return torch.cat(logits, 1) + out_bias


class Panels:
    """GEMM panels over a staircase mask: row panel k multiplies only the columns that some row of it sees.

    Rows are sorted by extent and row o sees the first extents[o] columns. The part of a panel that the mask cuts
    through is masked at every call, the rest is used in place.
    """

    def __init__(self, weight: Tensor, bias: Tensor, extents: Tensor, count: int) -> None:
        self.weight, self.bias, self.panels = weight, bias, []
        bounds = [round(k * weight.shape[0] / count) for k in range(count + 1)]
        for top, bottom in itertools.pairwise(bounds):
            if top == bottom:
                continue
            full, seen = int(extents[top]), int(extents[bottom - 1])
            column = torch.arange(full, seen, device=weight.device)
            mask = (column < extents[top:bottom, None]).to(weight.dtype)
            self.panels.append((slice(top, bottom), full, seen, mask))

    def run(self, x: Tensor) -> Tensor:
        output = x.new_empty(x.shape[0], self.weight.shape[0])
        for rows, full, seen, mask in self.panels:
            part = torch.addmm(self.bias[rows], x[:, :full], self.weight[rows, :full].T)
            if seen > full:
                part.addmm_(x[:, full:seen], (self.weight[rows, full:seen] * mask).T)
            output[:, rows] = part
        return output


class GraphReplay:
    """A CUDA graph of a function without arguments: the launches of the loop cost next to nothing."""

    def __init__(self, function: Callable[[], object]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                function()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = function()

    def run(self) -> object:
        self.graph.replay()
        return self.result


class CompileTimeout(RuntimeError):
    """torch.compile took longer than it may."""


@contextlib.contextmanager
def compile_guard(seconds: float):
    """Ends the block with CompileTimeout if it lasts longer (on Linux's main thread; elsewhere only reports it)."""
    import signal
    import threading

    start = time.perf_counter()
    usable = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()

    def stop(*_: object) -> None:
        raise CompileTimeout(f"not compiled within {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, stop) if usable else None
    if usable:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        if usable:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
    if time.perf_counter() - start > seconds:
        raise CompileTimeout(f"not compiled within {seconds:.0f} s")
