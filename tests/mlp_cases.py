"""Random masked networks for masked_mlp_sample, and its reference beside it."""

from dataclasses import dataclass

import torch
from mixed_cases import mixed_heads
from torch import Tensor

from ar_fast import functional, reference


@dataclass
class MlpCase:
    variables: int
    weights: list[Tensor]
    biases: list[Tensor]
    extents: list[Tensor]
    unit_ends: list[Tensor]
    program: list[functional.MlpLayer]
    order: Tensor | None
    activation: str
    head: str
    levels: int
    in_offsets: Tensor | None
    out_offsets: Tensor | None
    head_kinds: Tensor | None = None
    constants: tuple[float, ...] = ()

    @property
    def state_features(self) -> int:
        return self.weights[0].shape[1] + sum(int(ends[-1]) for ends in self.unit_ends)

    @property
    def numbers(self) -> list[int]:
        return [number for layer in self.program for number in layer.numbers()]

    @property
    def of_head(self) -> dict:
        names = "variables", "head", "levels", "in_offsets", "out_offsets", "head_kinds", "constants"
        return {name: getattr(self, name) for name in names}


NETWORKS = ["plain", "direct", "residual", "direct residual", "skips"]


def make_program(network, hidden_layers):
    """Skips: every layer has a second term that reads any value before, and the last adds nothing."""
    layer = functional.MlpLayer
    if "residual" in network:
        program, state = [layer((0,), activated=False)], 1
        for _ in range(hidden_layers // 2):
            program += [layer(add=state), layer((state + 1,)), layer((state + 2,), add=state, activated=False)]
            state += 3
        program.append(layer(add=state))
    elif network == "skips":
        program = [layer((k, int(torch.randint(k + 1, ())))) for k in range(hidden_layers)]
    else:
        program = [layer((k,)) for k in range(hidden_layers)]
    second = (0,) if "direct" in network else (hidden_layers // 2,) if network == "skips" else ()
    return [*program, layer((len(program), *second), activated=False)]


def mlp_case(
    variables,
    hidden,
    *,
    dtype=torch.float32,
    device="cpu",
    activation="relu",
    context_rows=0,
    head="bernoulli",
    components=1,
    ragged=False,
    network="plain",
    constants=(),
) -> MlpCase:
    """Random weights, NaN where they are masked, and random degrees; with context_rows the first bias is by row.

    components: how many a mixture has, or how many parameters a transform has.
    network: of NETWORKS. For a residual one hidden[0] is the width, and len(hidden) // 2 the number of blocks.
    """
    inputs, outputs = torch.ones(variables, dtype=torch.int64), torch.full((variables,), components)
    if ragged:
        outputs = torch.randint(1, components + 1, (variables,))
    head_kinds = None
    if head == "per_variable":
        (head_kinds, outputs, inputs), ragged = mixed_heads(variables, components), True
        head_kinds = head_kinds.to(device)
    elif head == "categorical":
        inputs = outputs
    elif head.endswith("mixture"):
        outputs = 3 * outputs
    bounds = [torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(device) for counts in (inputs, outputs)]
    lowest = 0 if context_rows else min(1, variables - 1)
    program = make_program(network, len(hidden))
    widths = [hidden[0]] * (len(program) - 1) if "residual" in network else hidden
    degrees = [torch.randint(lowest, max(variables, lowest + 1), (units,)).sort().values for units in widths]
    if "residual" in network:
        degrees = degrees[:1] * len(degrees)
    positions = torch.arange(variables)
    chain = [(positions + 1).repeat_interleave(inputs), *degrees, positions.repeat_interleave(outputs)]
    weights, biases, extents = [], [], []
    for layer, own in zip(program, chain[1:], strict=True):
        for source in layer.sources:
            below = chain[source]
            seen = torch.searchsorted(below, own, right=True)
            weight = torch.randn(len(own), len(below), dtype=torch.float64) / max(1, len(below)) ** 0.5
            weight = torch.where(torch.arange(len(below)) < seen[:, None], weight, float("nan"))
            weights.append(weight.to(device, dtype))
            extents.append(seen.to(device, torch.int32))
        biases.append(torch.randn(len(own) if layer.sources else 0, dtype=torch.float64).to(device, dtype))
    if context_rows:
        rows = torch.randn(context_rows, hidden[0], dtype=torch.float64)
        biases[0] = rows.to(device, reference.compute_dtype(dtype))
    ends = [torch.searchsorted(units, positions, right=True).to(device, torch.int32) for units in degrees]
    order = torch.randperm(variables).to(device)
    levels = 9 if head == "logistic_mixture" else 0
    encoded = ragged and head in ("categorical", "per_variable")
    offsets = bounds[0] if encoded else None, bounds[1] if ragged else None
    return MlpCase(
        variables,
        weights,
        biases,
        extents,
        ends,
        program,
        order,
        activation,
        head,
        levels,
        *offsets,
        head_kinds,
        constants,
    )


def sample(case, batch, *, state=None, rows=slice(None), **options):
    """A call of the op for ``batch`` rows, of which a bias by row gives ``rows``."""
    dtype, device = reference.compute_dtype(case.weights[0].dtype), case.weights[0].device
    if state is None:
        state = torch.zeros(batch, case.state_features, dtype=dtype, device=device)
    biases = [bias[rows] if bias.dim() == 2 else bias for bias in case.biases]
    return functional.masked_mlp_sample(
        state, case.weights, biases, case.extents, case.unit_ends, program=case.program, order=case.order,
        activation=case.activation, **case.of_head, **{"seed": 11, **options},
    )  # fmt: skip


def by_reference(case, batch, **options):
    device = case.weights[0].device
    options = {
        "given": None, "known": None, "seed": 11, "first_index": 0, "start": 0, "stop": case.variables,
        "temperature": 1.0, **options,
    }  # fmt: skip
    if options["given"] is not None:
        options["given"] = options["given"].double()
    return reference.masked_mlp_sample(
        torch.zeros(batch, case.state_features, dtype=torch.float64, device=device),
        # The reference multiplies by the mask, so it gets zeros where the op gets NaN.
        [weight.double().nan_to_num(0.0) for weight in case.weights], [bias.double() for bias in case.biases],
        case.extents, case.unit_ends, case.numbers, case.order, activation=case.activation, **case.of_head, **options,
    )  # fmt: skip


def assert_equal_draws(got, want, dtype, single=1e-4):
    """Draws may differ only where rounding decides, which these seeds do not hit; the rest agrees within rounding.

    single: the tolerance in float32.
    """
    values, log_prob, state = got
    assert log_prob.dtype == torch.float64
    assert values.dtype == state.dtype == reference.compute_dtype(dtype)
    tolerance = dict.fromkeys(("rtol", "atol"), 1e-9 if dtype == torch.float64 else single)
    if torch.equal(want[0], want[0].round()):
        assert torch.equal(values.double(), want[0])
    torch.testing.assert_close(values.double(), want[0], **tolerance)
    torch.testing.assert_close(log_prob, want[1], **tolerance)
    torch.testing.assert_close(state.double(), want[2], **tolerance)
