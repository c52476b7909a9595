"""Random calls of every op, for the properties: any sizes, layouts, dtypes, heads, masks, orders and known sets.

A strategy draws the structure of a call and one seed; the numbers come from the generators that the other tests use, so
a failing case is small and is repeated by its seed. ``CALLS`` has a strategy for each op, and ``broken`` breaks one
argument of a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import armlp_cases
import deep_nade_op_cases
import fvsbn_cases
import inverse_adjoint_cases
import masked_cases
import masked_mlp_flow_cases
import mlp_cases
import nade_cases
import offset_nade_op_cases
import rnn_cases
import torch
from hypothesis import strategies as st
from memory_layouts import LAYOUTS
from mixed_cases import mixed_values
from torch import Tensor
from transform_cases import TRANSFORMS

from ar_fast import _fallback, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HEADS = ["bernoulli", "categorical", "gaussian_mixture", "logistic_mixture", "per_variable"]
SEEDS = [0, 1, 2**63 - 1, -1, -(2**63), 2**32]
FIRST_INDICES = [0, 1, 2**31 - 1, 2**40, 2**62]
dtypes, activations = st.sampled_from(DTYPES), st.sampled_from(["sigmoid", "tanh", "relu"])
batches, variables_, torch_seeds = st.integers(0, 9), st.integers(1, 11), st.integers(0, 2**31 - 1)
hidden_ = st.sampled_from([1, 2, 3, 7, 8, 15, 16, 17, 33])


@dataclass(repr=False)
class Call:
    """A call of an op.

    Attributes:
        op: its name.
        arguments: by name, in the order of the schema.
        leaves: the tensors that have a gradient; of a list, all of them.
        masked: the tensors that hold NaN where they are masked; the reference gets zeros there.
        twice: whether the op can be differentiated twice.
        real: whether values are drawn that feed back without bound, so that rounding grows with the temperature.
    """

    op: str
    arguments: dict[str, Any]
    leaves: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    twice: bool = False
    real: bool = False

    def map(self, function: Callable[[str, Tensor], Tensor]) -> Call:
        """The call with ``function`` of its name and itself in the place of every tensor."""

        def mapped(name: str, value: Any) -> Any:
            if isinstance(value, list):
                return [mapped(name, element) for element in value]
            return function(name, value) if isinstance(value, Tensor) else value

        return replace(self, arguments={name: mapped(name, value) for name, value in self.arguments.items()})

    def tensors(self) -> list[tuple[str, Tensor]]:
        found = []
        self.map(lambda name, tensor: found.append((name, tensor)) or tensor)
        return found

    def wide(self) -> Call:
        """In float64, for the reference: the same numbers, rounded no further, and zeros where a weight is masked."""

        def widen(name: str, tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            if not tensor.is_floating_point():
                return tensor
            tensor = tensor.double()
            return tensor.nan_to_num(0.0, 0.0, 0.0) if name in self.masked else tensor

        return self.map(widen)

    @property
    def dtype(self) -> torch.dtype:
        """The storage of the numbers: of 16 bits if any tensor has 16."""
        found = {tensor.dtype for _, tensor in self.tensors() if tensor.is_floating_point()}
        return min(found, key=lambda dtype: dtype.itemsize, default=torch.float32)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __repr__(self) -> str:
        def shown(value: Any) -> str:
            if isinstance(value, list):
                return f"[{', '.join(shown(element) for element in value)}]"
            if not isinstance(value, Tensor):
                return repr(value)
            kind = str(value.dtype).removeprefix("torch.")
            return f"{kind}{list(value.shape)} strides {list(value.stride())}+{value.storage_offset()}"

        return f"{self.op}({', '.join(f'{name}={shown(value)}' for name, value in self.arguments.items())})"


# ---- Layouts

# One row stands for all of these, where the values may be the same.
EXPANDED = ("x", "state", "given", "known", "parameters", "context", "input", "grad_output", "last", "limits", "grad")


@st.composite
def laid_out(draw, call: Call) -> Call:
    """The call with its tensors anywhere in memory."""
    # Mostly as they are: then one other layout is the cause of a failure.
    if draw(st.booleans()):
        return call
    rest = call.op != "masked_mlp_flow" or "context" in call.arguments

    def lay(name: str, tensor: Tensor) -> Tensor:
        if tensor.dim() == 0:
            return tensor
        options = list(LAYOUTS)
        if name in EXPANDED and rest and tensor.shape[0] > 1:
            options.append("expanded")
        layout = draw(st.sampled_from(options))
        return tensor[:1].expand_as(tensor) if layout == "expanded" else LAYOUTS[layout](tensor)

    return call.map(lay)


# ---- What the samplers share


def _drawing(draw, variables: int, given: Tensor, dtype: torch.dtype, real: bool) -> dict[str, Any]:
    """given, known and the arguments that choose the draws. given is in the support, (B, D)."""
    kind = draw(st.sampled_from(["none", "none", "all", "no variable", "some"]))
    known = None
    if kind != "none":
        known = torch.rand(given.shape) < {"all": 2.0, "no variable": -1.0, "some": 0.5}[kind]
        # What given holds for a variable that is not known has no effect.
        given = torch.where(known, given, math.nan)
    return {
        "given": None if known is None else given.to(reference.compute_dtype(dtype)),
        "known": known,
        "seed": draw(st.sampled_from(SEEDS) | st.integers(-(2**63), 2**63 - 1)),
        "first_index": draw(st.sampled_from(FIRST_INDICES)),
        "start": 0,
        "stop": variables,
        "temperature": draw(st.sampled_from([1.0, 1.0, 0.5, 2.0] if real else [1.0, 0.5, 2.0, 1e-6, 1e6])),
    }


def _in_order(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments in the order of the schema; what is not given is what the functions give."""
    default = {"algorithm": "auto", "order": None, "head_kinds": None, "in_offsets": None, "out_offsets": None}
    default |= {"offsets": None, "activation_scale": None, "levels": 0, "by_input": False, "constants": []}
    return {argument: {**default, **arguments}[argument] for argument in _fallback.types_of(name)}


def _values(head: str, kinds: Tensor | None, counts: Tensor, batch: int, levels: int) -> Tensor:
    """(B, D) float64, in the support of each variable's head."""
    if kinds is None:
        kinds = torch.tensor([[HEADS.index(head), levels]]).expand(len(counts), 2)
    return mixed_values(kinds, counts, batch) if batch else torch.zeros(0, len(counts), dtype=torch.float64)


# ---- The ops


@st.composite
def _nade_case(draw, *, head: bool):
    torch.manual_seed(draw(torch_seeds))
    options = {"dtype": draw(dtypes), "activation": draw(activations)}
    for name in ("ordered", "scaled", "row_bias", "ragged"):
        options[name] = draw(st.booleans())
    if head:
        options |= {"head": draw(st.sampled_from(HEADS)), "parameters": draw(st.integers(1, 4))}
        if options["head"] == "bernoulli":
            options |= {"parameters": 1, "ragged": False, "x": draw(st.sampled_from(["binary", "bool", "integer"]))}
    else:
        x = ["binary", "dense", "bool", "integer", "category", "mixed"]
        options |= {"x": draw(st.sampled_from(x)), "parameters": draw(st.integers(1, 3))}
    return nade_cases.nade_case(draw(batches), draw(variables_), draw(hidden_), **options)


_NADE_LEAVES = ("x", "in_weight", "in_bias", "out_weight", "out_bias", "activation_scale")


@st.composite
def nade(draw) -> Call:
    case = draw(_nade_case(head=False))
    names = list(_fallback.types_of("nade"))
    arguments = dict(zip(names, case.arguments(), strict=False))
    return Call("nade", _in_order("nade", arguments), _NADE_LEAVES)


@st.composite
def nade_log_prob(draw) -> Call:
    case = draw(_nade_case(head=True))
    names = list(_fallback.types_of("nade_log_prob"))
    arguments = dict(zip(names, case.log_prob_arguments(), strict=False))
    return Call("nade_log_prob", arguments | {"per_variable": draw(st.booleans()), "algorithm": "auto"}, _NADE_LEAVES)


@st.composite
def nade_sample(draw) -> Call:
    case = draw(_nade_case(head=True))
    variables, compute = case.x.shape[1], reference.compute_dtype(case.in_weight.dtype)
    state = case.in_bias.to(compute).expand(len(case.x), -1)
    arguments = vars(case) | {"state": state, "variables": variables}
    real = case.head.endswith("mixture") or case.head == "per_variable"
    arguments |= _drawing(draw, variables, case.x.double(), case.in_weight.dtype, real)
    return Call("nade_sample", _in_order("nade_sample", arguments), real=real)


@st.composite
def head_log_prob(draw) -> Call:
    case = draw(_nade_case(head=True))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    # Mixtures of any parameters; up to where the reference's own exponentials leave float64's range.
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 10.0]))
    parameters = scale * torch.randn(len(case.x), len(case.out_bias), dtype=torch.float64)
    arguments = {"parameters": parameters.to(dtype), "offsets": case.out_offsets}
    x = case.x
    if x.is_floating_point():
        x = x.to(draw(st.sampled_from([torch.float32, torch.float64])))
    elif x.dtype == torch.int64:
        x = x.to(draw(st.sampled_from([torch.int64, torch.int32, torch.uint8, torch.float32, torch.int8])))
    arguments = {**vars(case), **arguments, "x": x}
    return Call("head_log_prob", _in_order("head_log_prob", arguments), ("parameters", "x"))


@st.composite
def masked_linear(draw, op: str = "masked_linear") -> Call:
    torch.manual_seed(draw(torch_seeds))
    batch = draw(st.sampled_from([(), (0,), (1,), (4,), (2, 0), (2, 3), (17,)]))
    sizes = st.sampled_from([0, 1, 2, 3, 7, 17, 64, 65, 70])
    kind, dtype = draw(st.sampled_from(masked_cases.KINDS)), draw(dtypes)
    case = masked_cases.masked_case(
        batch, draw(sizes), draw(sizes), kind, dtype=dtype, bias=draw(st.booleans()), poison=draw(st.booleans())
    )
    plan = dict(zip(("extents", "rows", "columns", "tiles", "dense"), case.plan, strict=False))
    arguments = {"weight": case.weight, **plan, "steps": [], "algorithm": "auto"}
    if op == "masked_linear":
        activation = draw(st.sampled_from([None, None, "relu", "sigmoid", "tanh", "silu", "gelu", "elu"]))
        arguments |= {"input": case.input, "bias": case.bias, "activation": activation}
        return Call(op, _in_order(op, arguments), ("input", "weight", "bias"), ("weight",), twice=True)
    arguments["grad_output"] = torch.randn(*batch, len(case.weight), dtype=torch.float64).to(dtype)
    return Call(op, _in_order(op, arguments), ("grad_output", "weight"), ("weight",), twice=True)


def masked_linear_grad_input() -> st.SearchStrategy[Call]:
    return masked_linear("masked_linear_grad_input")


@st.composite
def masked_mlp_sample(draw) -> Call:
    torch.manual_seed(draw(torch_seeds))
    name = draw(st.sampled_from([*HEADS, *(name for name in TRANSFORMS if name.startswith("affine_"))]))
    transform = name in TRANSFORMS
    batch, variables, dtype = draw(batches), draw(variables_), draw(dtypes)
    network = draw(st.sampled_from(mlp_cases.NETWORKS))
    layers = draw(st.integers(1, 3))
    layers = 2 * layers if "residual" in network else layers
    case = mlp_cases.mlp_case(
        variables,
        [draw(hidden_) for _ in range(layers)],
        dtype=dtype,
        activation=draw(st.sampled_from(["relu", "sigmoid", "tanh", "elu", "softplus", "silu", "gelu", "leaky_relu"])),
        context_rows=draw(st.sampled_from([0, batch])),
        head=name,
        components=TRANSFORMS[name][1] if transform else 1 if name == "bernoulli" else draw(st.integers(1, 3)),
        ragged=name in ("categorical", "gaussian_mixture", "logistic_mixture") and draw(st.booleans()),
        network=network,
        constants=TRANSFORMS[name][0] if transform else (),
    )
    compute = reference.compute_dtype(dtype)
    arguments = vars(case) | {"program": case.numbers, "constants": list(case.constants)}
    arguments["state"] = torch.zeros(batch, case.state_features, dtype=compute)
    if transform:
        drawing = _drawing(draw, variables, torch.zeros(batch, variables), dtype, True)
        arguments |= drawing | {"given": torch.randn(batch, variables).to(compute), "known": None, "temperature": 1.0}
    else:
        by_position = case.out_offsets.diff() if case.out_offsets is not None else None
        if by_position is None:
            by_position = torch.full((variables,), max(2, case.weights[-1].shape[0] // variables))
        values = _values(name, case.head_kinds, by_position, batch, case.levels)
        given = torch.empty_like(values)
        given[:, case.order] = values
        arguments |= _drawing(draw, variables, given, dtype, name not in ("bernoulli", "categorical"))
    call = Call("masked_mlp_sample", _in_order("masked_mlp_sample", arguments), masked=("weights",))
    return replace(call, real=name not in ("bernoulli", "categorical"))


@st.composite
def fvsbn_sample(draw, op: str = "fvsbn_sample") -> Call:
    torch.manual_seed(draw(torch_seeds))
    head, batch, variables, dtype = draw(st.sampled_from(HEADS)), draw(batches), draw(variables_), draw(dtypes)
    case = fvsbn_cases.fvsbn_case(
        variables,
        dtype=dtype,
        head=head,
        parameters=1 if head == "bernoulli" else draw(st.integers(1, 3)),
        ragged=head != "bernoulli" and draw(st.booleans()),
        ordered=draw(st.booleans()),
    )
    compute, real = reference.compute_dtype(dtype), head not in ("bernoulli", "categorical")
    given = case.given(batch).double() if batch else torch.zeros(0, variables, dtype=torch.float64)
    arguments = vars(case) | _drawing(draw, variables, given, dtype, real)
    if op == "fvsbn_sample":
        arguments["state"] = case.bias.to(compute).expand(batch, -1)
        return Call(op, _in_order(op, arguments), masked=("weight",), real=real)
    weights, biases, structure = fvsbn_cases.by_position(case)
    arguments |= structure | {"weights": weights, "biases": biases, "extents": [], "unit_ends": []}
    arguments |= {"program": [0, -1, -1, 0], "activation": "relu"}
    arguments["state"] = torch.zeros(batch, len(case.weight), dtype=compute)
    return Call(op, _in_order(op, arguments), masked=("weights",), real=real)


@st.composite
def armlp_sample(draw) -> Call:
    torch.manual_seed(draw(torch_seeds))
    head, batch, variables, dtype = draw(st.sampled_from(HEADS)), draw(batches), draw(variables_), draw(dtypes)
    case = armlp_cases.armlp_case(
        variables,
        draw(hidden_),
        dtype=dtype,
        head=head,
        parameters=1 if head == "bernoulli" else draw(st.integers(1, 3)),
        ragged=head != "bernoulli" and draw(st.booleans()),
        ordered=draw(st.booleans()),
        activation=draw(activations),
        context_rows=draw(st.sampled_from([0, batch])),
    )
    real = head not in ("bernoulli", "categorical")
    given = case.given(batch).double() if batch else torch.zeros(0, variables, dtype=torch.float64)
    arguments = vars(case) | case.weights | _drawing(draw, variables, given, dtype, real)
    # What comes after start is not looked at.
    arguments["state"] = torch.full((batch, variables), 77.0, dtype=case.compute)
    return Call("armlp_sample", _in_order("armlp_sample", arguments), masked=("in_weight",), real=real)


@st.composite
def deep_nade_sample(draw) -> Call:
    torch.manual_seed(draw(torch_seeds))
    head, batch, variables, dtype = draw(st.sampled_from(HEADS)), draw(batches), draw(variables_), draw(dtypes)
    parameters = {"bernoulli": 1, "categorical": 3}.get(head, 3 * draw(st.integers(1, 2)))
    case = deep_nade_op_cases.deep_case(
        variables,
        tuple(draw(hidden_) for _ in range(draw(st.integers(1, 3)))),
        head=head,
        parameters=parameters,
        ragged=head not in ("bernoulli", "per_variable") and draw(st.booleans()),
        activation=draw(activations),
        ordered=draw(st.booleans()),
        dtype=dtype,
    )
    real = head not in ("bernoulli", "categorical")
    given = case.given(batch).double() if batch else torch.zeros(0, variables, dtype=torch.float64)
    arguments = case.tensors | case.structure | _drawing(draw, variables, given, dtype, real)
    arguments |= {"state": case.bias.to(case.compute).expand(batch, -1), "variables": variables}
    return Call("deep_nade_sample", _in_order("deep_nade_sample", arguments), real=real)


@st.composite
def offset_nade_sample(draw) -> Call:
    torch.manual_seed(draw(torch_seeds))
    head, batch, dtype = draw(st.sampled_from(list(offset_nade_op_cases.HEADS))), draw(batches), draw(dtypes)
    grid = draw(st.sampled_from([(1, 1, 1), (1, 7, 1), (3, 1, 2), (4, 5, 1), (2, 3, 3), (9, 6, 1)]))
    window = draw(st.sampled_from([(0, 1), (1, 1), (2, 2), (0, 9), (5, 0)]))
    layers = draw(st.sampled_from([(), (5,), (4, 3)]))
    arguments = offset_nade_op_cases.op_case(
        batch, grid, window, draw(hidden_), layers, head=head, shared_output=draw(st.booleans()),
        ordered=draw(st.booleans()), row_bias=draw(st.booleans()), activation=draw(activations), dtype=dtype,
    )  # fmt: skip
    variables, head = math.prod(grid), arguments["head"]
    counts = torch.full((variables,), offset_nade_op_cases.HEADS["categorical"])
    real = head not in ("bernoulli", "categorical")
    given = _values(head, None, counts, batch, arguments["levels"])
    arguments |= _drawing(draw, variables, given, dtype, real)
    arguments |= {"grid": list(grid), "window": list(window)}
    return Call("offset_nade_sample", _in_order("offset_nade_sample", arguments), real=real)


@st.composite
def rnn_sample(draw) -> Call:
    torch.manual_seed(draw(torch_seeds))
    head, batch, variables, dtype = (
        draw(st.sampled_from(list(rnn_cases.HEADS))),
        draw(batches),
        draw(variables_),
        draw(dtypes),
    )
    count = rnn_cases.HEADS[head]
    arguments = rnn_cases.op_case(
        batch, variables, draw(hidden_), draw(st.integers(1, 3)), cell=draw(st.sampled_from(rnn_cases.CELLS)),
        head=head, row_bias=draw(st.booleans()), ordered=draw(st.booleans()), dtype=dtype,
    )  # fmt: skip
    head = arguments["head"]
    real = head not in ("bernoulli", "categorical")
    given = _values(head, None, torch.full((variables,), count), batch, arguments["levels"])
    arguments |= _drawing(draw, variables, given, dtype, real)
    first = draw(st.sampled_from([0, 0, 5, 2**40]))
    arguments |= {"first_position": first, "top_k": 0, "top_p": 1.0, "stop_token": -1, "finished": None, "limits": None}
    if head == "categorical":
        arguments["top_k"] = draw(st.sampled_from([0, 0, 1, 2, count]))
        arguments["top_p"] = draw(st.sampled_from([1.0, 1.0, 0.5, 1e-6]))
        arguments["stop_token"] = draw(st.sampled_from([-1, -1, 0, count - 1]))
    if draw(st.booleans()):
        arguments["finished"] = torch.rand(batch) < 0.3
    if draw(st.booleans()):
        arguments["limits"] = torch.randint(0, variables + 1, (batch,))
    return Call("rnn_sample", _in_order("rnn_sample", arguments), real=real)


@st.composite
def masked_mlp_flow(draw) -> Call:
    torch.manual_seed(draw(torch_seeds))
    network, name = draw(st.sampled_from(list(masked_mlp_flow_cases.PROGRAMS))), draw(st.sampled_from(list(TRANSFORMS)))
    chain, dtype = draw(st.sampled_from(list(masked_mlp_flow_cases.CHAINS))), draw(st.sampled_from(DTYPES[:2]))
    batch, variables = draw(batches), draw(variables_)
    rows = batch if draw(st.booleans()) else 0
    context, weights, masks, biases, options = masked_mlp_flow_cases.case(
        network, name, variables, draw(st.sampled_from([0, 3])), chain, dtype, bias_rows=rows
    )
    x, given = masked_mlp_flow_cases.inputs(batch, variables, context, dtype)
    if draw(st.booleans()):
        masks = [mask.to(dtype) for mask in masks]
    numbers = [number for layer in options["program"] for number in layer.numbers()]
    arguments = {
        **options, "x": x, "context": given, "weights": weights, "masks": masks, "biases": biases, "program": numbers,
        "activation": draw(st.sampled_from(["sigmoid", "tanh", "silu", "gelu", "relu"])),
        "constants": list(options["constants"]), "by_parameter": draw(st.booleans()),
        "scale_first": name.startswith("affine_") and draw(st.booleans()),
    }  # fmt: skip
    leaves = ("x", "context", "weights", "biases")
    return Call("masked_mlp_flow", _in_order("masked_mlp_flow", arguments), leaves, twice=True)


@st.composite
def inverse_adjoint(draw) -> Call:
    torch.manual_seed(draw(torch_seeds))
    variables = draw(variables_)
    arguments = inverse_adjoint_cases.case(
        draw(st.sampled_from(list(inverse_adjoint_cases.NETWORKS))), draw(batches), variables, draw(st.integers(1, 3)),
        draw(st.integers(1, variables)), draw(st.sampled_from(DTYPES[:2])),
    )  # fmt: skip
    names = _fallback.types_of("inverse_adjoint")
    return Call("inverse_adjoint", dict(zip(names, arguments, strict=True)))


@st.composite
def univariate_transform(draw) -> Call:
    torch.manual_seed(draw(torch_seeds))
    name, dtype = draw(st.sampled_from(list(TRANSFORMS))), draw(st.sampled_from(DTYPES[:2]))
    constants, count = TRANSFORMS[name]
    batch, variables = draw(batches), draw(variables_)
    scale = draw(st.sampled_from([0.0, 1.0, 3.0]))
    arguments = {
        "x": (2 * torch.randn(batch, variables, dtype=torch.float64)).to(dtype),
        "parameters": (scale * torch.randn(batch, variables * count, dtype=torch.float64)).to(dtype),
        "transform": name.split()[0],
        "constants": list(constants),
        "by_parameter": draw(st.booleans()),
        "scale_first": name.startswith("affine_") and draw(st.booleans()),
    }
    return Call("univariate_transform", _in_order("univariate_transform", arguments), ("x", "parameters"), twice=True)


def masked_mlp_sample_by_input() -> st.SearchStrategy[Call]:
    return fvsbn_sample("masked_mlp_sample")


CALLS = {
    "armlp_sample": armlp_sample,
    "deep_nade_sample": deep_nade_sample,
    "fvsbn_sample": fvsbn_sample,
    "head_log_prob": head_log_prob,
    "inverse_adjoint": inverse_adjoint,
    "masked_linear": masked_linear,
    "masked_linear_grad_input": masked_linear_grad_input,
    "masked_mlp_flow": masked_mlp_flow,
    "masked_mlp_sample": masked_mlp_sample,
    "masked_mlp_sample by input": masked_mlp_sample_by_input,
    "nade": nade,
    "nade_log_prob": nade_log_prob,
    "nade_sample": nade_sample,
    "offset_nade_sample": offset_nade_sample,
    "rnn_sample": rnn_sample,
    "univariate_transform": univariate_transform,
}


@st.composite
def calls(draw, name: str) -> Call:
    return draw(laid_out(draw(CALLS[name]())))


# ---- One argument broken

_NUMBERS = {
    "temperature": [0.0, -1.0, math.nan],
    "start": [-1, 2**40],
    "stop": [-1, 2**40],
    "levels": [-1],
    "variables": [-1, 2**40],
    "first_index": [-1, 2**63 - 1],
    "first_position": [-1, 2**63 - 1],
    "top_k": [-1, 2**40],
    "top_p": [0.0, -0.5, 1.5, math.nan],
}


def _wrong_dtype(name: str, tensor: Tensor) -> Tensor:
    # Any integer is a value; an index has one type.
    return tensor.to(torch.int32 if tensor.dtype == torch.int64 and name != "x" else torch.complex64)


def _outside(draw, tensor: Tensor, step: int = 1) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[step * draw(st.integers(0, (tensor.numel() - 1) // step))] = draw(st.sampled_from([-7, 2**30]))
    return tensor


@st.composite
def broken(draw, name: str) -> tuple[Call, str, str]:
    """A call one argument of which breaks a rule of the op, the name of the argument, and how it is broken."""
    call = draw(CALLS[name]())
    ways = []
    for argument, value in call.arguments.items():
        if isinstance(value, Tensor):
            ways += [(argument, "dtype", _wrong_dtype(argument, value))]
            if argument not in ("input", "grad_output"):
                ways += [(argument, "dimensions", value[None, None])]
            ways += [(argument, "device", value.to("meta"))]
        elif isinstance(value, list) and value and isinstance(value[0], Tensor):
            at = draw(st.integers(0, len(value) - 1))
            wrong = [_wrong_dtype(argument, own) if i == at else own for i, own in enumerate(value)]
            deep = [own[None, None] if i == at else own for i, own in enumerate(value)]
            # An empty one stands for none.
            ways += [(argument, "dtype", wrong), (argument, "dimensions", deep)] if value[at].numel() else []
            ways += [(argument, "one more", [*value, value[0]]), (argument, "one less", value[:-1])]
        elif isinstance(value, str):
            ways += [(argument, "name", "nonsense"), (argument, "empty name", "")]
        elif argument in _NUMBERS:
            wrong = _NUMBERS[argument]
            if argument == "first_index" and call.arguments["state"].shape[-2] < 2:
                wrong = wrong[:1]  # the last index is no error for the only row
            ways += [(argument, "number", draw(st.sampled_from(wrong)))]
    if isinstance(call.arguments.get("order"), Tensor) and call.arguments["order"].numel():
        order = call.arguments["order"].clone()
        order[draw(st.integers(0, len(order) - 1))] = draw(st.sampled_from([len(order), -1, 2**40]))
        ways += [("order", "no permutation", order)]
        if len(order) > 1:
            twice = call.arguments["order"].clone()
            twice[0] = twice[1]
            ways += [("order", "a variable twice", twice)]
    for argument in ("offsets", "in_offsets", "out_offsets", "block_starts"):
        value = call.arguments.get(argument)
        if isinstance(value, Tensor):
            wrong = value.clone()
            wrong[draw(st.integers(0, len(value) - 1))] = draw(st.sampled_from([-5, 2**40]))
            ways += [(argument, "no start", wrong)]
    # Numbers that index: any one of them far outside.
    for argument in ("extents", "unit_ends", "rows", "columns", "head_kinds", "program", "ends", "orders"):
        value = call.arguments.get(argument)
        if "weight" in call.arguments and not call.arguments["weight"].numel():
            continue  # nothing is indexed
        if isinstance(value, list) and value and isinstance(value[0], int):
            # Of a program only what a layer reads: the rest are flags, and -1 for nothing.
            step = 4 if argument == "program" else 1
            ways += [(argument, "outside", _outside(draw, torch.tensor(value), step).tolist())]
        elif isinstance(value, list) and any(own.numel() for own in value):
            at = next(i for i, own in enumerate(value) if own.numel())
            ways += [(argument, "outside", [_outside(draw, own) if i == at else own for i, own in enumerate(value)])]
        elif isinstance(value, Tensor) and value.numel():
            ways += [(argument, "outside", _outside(draw, value))]
    argument, way, value = draw(st.sampled_from(ways))
    return replace(call, arguments=call.arguments | {argument: value}), argument, way
