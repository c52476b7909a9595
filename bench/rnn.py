"""rnn_sample: characters drawn from a recurrent model, in one call and by loops over torch's own operations."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ar_fast import functional, reference

from . import data, peers
from .cases import OURS, Built, Case, Contender, no_grad, relative_error
from .settings import Settings

LOOP = "loop over steps, input table, in place"
CELLS = "loop over torch.nn's cells, one-hot inputs"
COMPILED = "torch.compile of a step"
PRODUCT = "one product of matrices with as many multiply-adds"
VOCABULARY = 65

Step = Callable[..., Tensor]


class Parts:
    """A model with random weights: tables and weights by layer, for a batch of runs that begin."""

    def __init__(self, cell: str, batch: int, hidden: int, layers: int, steps: int, dtype: torch.dtype) -> None:
        self.cell, self.batch, self.hidden, self.steps, self.dtype = cell, batch, hidden, steps, dtype
        rows, scale = reference.GATES[cell] * hidden, hidden**-0.5

        def normal(*shape: int, seed: int) -> Tensor:
            return (data.normal(*shape, seed=seed) * scale).to(dtype)

        self.table = data.normal(VOCABULARY, rows, seed=20)
        self.in_bias = normal(rows, seed=21)
        self.recurrent = [normal(rows, hidden, seed=30 + layer) for layer in range(layers)]
        self.recurrent_biases = [normal(rows, seed=40 + layer) for layer in range(layers)]
        self.inputs = [normal(rows, hidden, seed=50 + layer) for layer in range(1, layers)]
        self.input_biases = [normal(rows, seed=60 + layer) for layer in range(1, layers)]
        self.out_weight, self.out_bias = normal(VOCABULARY, hidden, seed=70) * 3, normal(VOCABULARY, seed=71)

    def to(self, settings: Settings) -> "Parts":
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(settings.device))
            elif isinstance(value, list):
                setattr(self, name, [each.to(settings.device) for each in value])
        return self

    def zeros(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(len(self.recurrent), self.batch, self.hidden, dtype=dtype, device=self.table.device)

    def ours(self) -> tuple[Tensor, Tensor]:
        run = functional.rnn_sample(
            self.zeros(torch.float32),
            self.zeros(torch.float32)[0, :, 0],
            self.table,
            self.in_bias,
            self.recurrent,
            self.recurrent_biases,
            self.out_weight,
            self.out_bias,
            cell=self.cell,
            cell_state=self.zeros(torch.float32) if self.cell == "lstm" else None,
            in_weights=self.inputs,
            in_biases=self.input_biases,
            head="categorical",
            seed=0,
            stop=self.steps,
        )
        return run.values.long(), run.state

    def exact(self, tokens: Tensor) -> Tensor:
        """The state after a run over these tokens, in float64."""
        states, cells = list(self.zeros(torch.float64)), list(self.zeros(torch.float64))
        for p in range(self.steps):
            below = self.in_bias.double().expand(self.batch, -1)
            if p > 0:
                below = below + self.table.double()[tokens[:, p - 1]]
            for layer, weight in enumerate(self.recurrent):
                if layer > 0:
                    below = F.linear(
                        states[layer - 1], self.inputs[layer - 1].double(), self.input_biases[layer - 1].double()
                    )
                from_state = F.linear(states[layer], weight.double(), self.recurrent_biases[layer].double())
                states[layer], cell = reference.rnn_cell(self.cell, below, from_state, states[layer], cells[layer])
                cells[layer] = cells[layer] if cell is None else cell
        return torch.stack(states)


def _gates(cell: str, hidden: int) -> Step:
    """The next state from both products, in place: (a, s, h, c) -> h, where c is an LSTM's cell state."""

    def gru(a: Tensor, s: Tensor, h: Tensor, c: Tensor) -> Tensor:
        gates = a[:, : 2 * hidden].add_(s[:, : 2 * hidden]).sigmoid_()
        new = a[:, 2 * hidden :].addcmul_(gates[:, :hidden], s[:, 2 * hidden :]).tanh_()
        return h.sub_(new).mul_(gates[:, hidden:]).add_(new)

    def lstm(a: Tensor, s: Tensor, h: Tensor, c: Tensor) -> Tensor:
        i, f, g, o = a.add_(s).chunk(4, 1)
        c.mul_(f.sigmoid_()).addcmul_(i.sigmoid_(), g.tanh_())
        torch.tanh(c, out=h)
        return h.mul_(o.sigmoid_())

    def rnn(a: Tensor, s: Tensor, h: Tensor, c: Tensor) -> Tensor:
        torch.add(a, s, out=h)
        return h.tanh_()

    return {"gru": gru, "lstm": lstm, "rnn": rnn}[cell]


def _loop(parts: Parts, compiled: bool = False) -> Callable[[], tuple[Tensor, Tensor]]:
    """In float32: the input product a gathered row, every buffer made once."""
    batch, hidden, layers = parts.batch, parts.hidden, len(parts.recurrent)
    table = parts.table + parts.in_bias.float()
    # The first variable has no value before it: a row of the table for it.
    table = torch.cat([table, parts.in_bias.float()[None]])
    recurrent = [weight.float().T for weight in parts.recurrent]
    biases = [bias.float() for bias in parts.recurrent_biases]
    inputs = [weight.float().T for weight in parts.inputs]
    input_biases = [bias.float() for bias in parts.input_biases]
    out_weight, out_bias = parts.out_weight.float().T, parts.out_bias.float()
    gates = _gates(parts.cell, hidden)
    h, c = parts.zeros(torch.float32).unbind(0), parts.zeros(torch.float32).unbind(0)
    a, s = (table.new_empty(batch, table.shape[1]) for _ in range(2))
    logits, noise = (table.new_empty(batch, VOCABULARY) for _ in range(2))
    drawn = torch.empty(parts.steps, batch, dtype=torch.long, device=table.device)

    def step(tokens: Tensor, noise: Tensor, out: Tensor) -> None:
        torch.index_select(table, 0, tokens, out=a)
        for layer in range(layers):
            if layer > 0:
                torch.addmm(input_biases[layer - 1], h[layer - 1], inputs[layer - 1], out=a)
            torch.addmm(biases[layer], h[layer], recurrent[layer], out=s)
            gates(a, s, h[layer], c[layer])
        torch.addmm(out_bias, h[-1], out_weight, out=logits)
        # The greatest of p / e with exponential e is a draw from p, and cheaper than multinomial.
        torch.argmax(torch.softmax(logits, 1).div_(noise), 1, out=out)

    one = torch.compile(step, dynamic=False) if compiled else step

    def run() -> tuple[Tensor, Tensor]:
        for each in (*h, *c):
            each.zero_()
        tokens = torch.full((batch,), VOCABULARY, device=table.device)
        for p in range(parts.steps):
            one(tokens, noise.exponential_(), drawn[p])
            tokens = drawn[p]
        return drawn.T, torch.stack(h)

    return no_grad(run)


def _cells(parts: Parts) -> Callable[[], tuple[Tensor, Tensor]]:
    """As tutorials write it: torch.nn's cells, and multinomial."""
    made, device = [], parts.table.device
    for layer, weight in enumerate(parts.recurrent):
        kind = {"gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell, "rnn": torch.nn.RNNCell}[parts.cell]
        own = kind(VOCABULARY if layer == 0 else parts.hidden, parts.hidden, device=device)
        with torch.no_grad():
            own.weight_ih.copy_(parts.table.T if layer == 0 else parts.inputs[layer - 1])
            own.bias_ih.copy_(parts.in_bias if layer == 0 else parts.input_biases[layer - 1])
            own.weight_hh.copy_(weight)
            own.bias_hh.copy_(parts.recurrent_biases[layer])
        made.append(own)
    out_weight, out_bias = parts.out_weight.float(), parts.out_bias.float()

    def run() -> tuple[Tensor, Tensor]:
        h, c = list(parts.zeros(torch.float32)), list(parts.zeros(torch.float32))
        x, drawn = torch.zeros(parts.batch, VOCABULARY, device=device), []
        for _ in range(parts.steps):
            for layer, own in enumerate(made):
                if parts.cell == "lstm":
                    h[layer], c[layer] = own(x, (h[layer], c[layer]))
                else:
                    h[layer] = own(x, h[layer])
                x = h[layer]
            drawn.append(torch.multinomial(F.linear(x, out_weight, out_bias).softmax(1), 1)[:, 0])
            x = F.one_hot(drawn[-1], VOCABULARY).float()
        return torch.stack(drawn, 1), torch.stack(h)

    return no_grad(run)


def _build(settings: Settings, cell: str, batch: int, layers: int, dtype: torch.dtype) -> Built:
    hidden, steps = (16, 6) if settings.tiny else (512, 500)
    parts = Parts(cell, batch, hidden, layers, steps, dtype).to(settings)

    def compiled() -> Contender:
        run = _loop(parts, compiled=True)
        with peers.compile_guard(settings.compile_seconds):
            run()
        return Contender(run, tuple)

    def product() -> Contender:
        """No sampler: how fast torch multiplies here when nothing waits for anything."""
        side = 64 if settings.tiny else 2048
        weights = [*parts.recurrent, *parts.inputs, parts.out_weight]
        multiply_adds = batch * steps * sum(weight.numel() for weight in weights)
        a, b = data.normal(-(-multiply_adds // side**2), side, seed=80), data.normal(side, side, seed=81)
        a, b = a.to(settings.device), b.to(settings.device)
        return Contender(lambda: a @ b, lambda _: ())

    def error(values) -> float:
        tokens, state = values
        return relative_error([state], [parts.exact(tokens)])

    makers = {
        OURS: lambda: Contender(parts.ours, tuple),
        LOOP: lambda: Contender(_loop(parts), tuple),
        CELLS: lambda: Contender(_cells(parts), tuple),
        COMPILED: compiled,
        PRODUCT: product,
    }
    return Built(makers, error)


def cases(settings: Settings) -> Iterator[Case]:
    hidden, steps = (16, 6) if settings.tiny else (512, 500)
    compiled = [COMPILED] if settings.compile_seconds > 0 else []
    for cell, layers, batch, dtype in [
        ("gru", 1, 16, torch.float32),
        ("gru", 1, 1, torch.float32),
        ("gru", 1, 1, torch.bfloat16),
        ("gru", 3, 1, torch.float32),
        ("gru", 3, 16, torch.float32),
        ("lstm", 1, 16, torch.float32),
        ("lstm", 1, 1, torch.float32),
        ("rnn", 1, 16, torch.float32),
        ("rnn", 1, 1, torch.float32),
    ]:
        sizes = f"B {batch}, H {hidden}, {layers} layer{'s' if layers > 1 else ''}, {steps} characters"
        # The others keep the weights, which are bfloat16 numbers, in float32.
        contenders = [OURS, LOOP, *compiled, *([CELLS] if settings.full or settings.tiny else []), PRODUCT]

        def build(cell=cell, batch=batch, layers=layers, dtype=dtype) -> Built:
            return _build(settings, cell, batch, layers, dtype)

        kind = str(dtype).removeprefix("torch.")
        yield Case(f"Sampling of a {cell.upper()}", sizes, f"vocabulary {VOCABULARY}", build, contenders, kind)
