"""The plain-torch references of :mod:`ar_fast.reference`, for calls that no compiled op can run.

Every call is checked before it reaches a reference. Where the library is compiled, the op's own Meta kernel checks it,
on meta tensors of the same shapes and dtypes, so the rules and the messages are those of the compiled op. Where nothing
was compiled, the table below gives the rules, and the types come from the references' signatures, which match the ops'
schemas.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from . import _library, reference
from ._vocabulary import compute_dtype

__all__ = ["REFERENCES", "TENSORS", "call", "check", "check_by_table", "types_of"]

REFERENCES = {
    name: getattr(reference, name)
    for name in (
        "armlp_sample",
        "deep_nade_sample",
        "fvsbn_sample",
        "head_log_prob",
        "inverse_adjoint",
        "masked_linear",
        "masked_linear_grad_input",
        "masked_mlp_sample",
        "masked_mlp_flow",
        "nade",
        "nade_log_prob",
        "nade_sample",
        "offset_nade_sample",
        "rnn_sample",
        "univariate_transform",
    )
}

# The dtype of each tensor, by its name, and the shapes it may have. The name of a size means the same size everywhere
# in a call; _ is any size, and ... any number of dimensions. "weight" is the dtype of the op's (first) weight, and
# "compute" that of its arithmetic.
_D1 = ("int64", "D+1")
TENSORS: dict[str, tuple[str, ...]] = {
    "x": ("any", "B D"),
    "input": ("weight", "... I"),
    "grad_output": ("weight", "... O"),
    "state": ("compute", "B _"),
    "parameters": ("floating", "B _"),
    "weight": ("weight", "O I"),
    "weights": ("weight", "_ _"),
    "masks": ("any", "_ _"),
    "slopes": ("weight", "B _"),
    "in_weight": ("weight", "R_in H"),
    "mask_weight": ("weight", "D H"),
    "out_weight": ("weight", "R_out H"),
    "bias": ("weight", "O"),
    "biases": ("weight or compute", "_", "B _"),
    "in_bias": ("weight", "H", "B H"),
    "out_bias": ("weight", "R_out"),
    "activation_scale": ("weight", "D"),
    "block_starts": ("int64", "_"),
    "order": ("int64", "D"),
    "orders": ("any", "D", "0"),
    "offsets": _D1,
    "in_offsets": _D1,
    "out_offsets": _D1,
    "head_kinds": ("int64", "D 2"),
    "given": ("compute", "B D"),
    "known": ("bool", "B D"),
    "extents": ("int32", "_"),
    "rows": ("int32", "O"),
    "columns": ("int32", "I"),
    "tiles": ("int32", "_ _"),
    "dense": ("bool", "O I"),
    "unit_ends": ("int32", "D"),
    "cell_state": ("compute", "L B H"),
    "last": ("compute", "B"),
    "finished": ("bool", "B"),
    "limits": ("int64", "B"),
    "in_table": ("weight or compute", "_ G*H"),
    "in_weights": ("weight", "G*H H"),
    "in_biases": ("weight or compute", "G*H"),
    "recurrent_weights": ("weight", "G*H H"),
    "recurrent_biases": ("weight or compute", "G*H"),
}
# Ops that have another rule for a name.
_OWN: dict[str, dict[str, tuple[str, ...]]] = {
    "armlp_sample": {
        "state": ("compute", "B D"),
        "in_bias": ("weight or compute", "D H", "B D H"),
        "out_bias": ("weight or compute", "R_out"),
    },
    "deep_nade_sample": {
        "state": ("compute", "B H"),
        "biases": ("weight", "_"),
        "out_weight": ("weight", "R_out _"),
    },
    "fvsbn_sample": {"state": ("compute", "B R_out"), "weight": ("weight", "R_in R_out")},
    "inverse_adjoint": {"grad": ("weight", "B D"), "factors": ("weight", "B _")},
    "masked_linear": {"extents": ("int32", "O")},
    "masked_linear_grad_input": {"extents": ("int32", "O")},
    "masked_mlp_flow": {"x": ("weight", "B D"), "context": ("weight", "B _"), "biases": ("weight", "_", "B _")},
    "nade_sample": {"state": ("compute", "B H")},
    "offset_nade_sample": {
        "in_bias": ("weight or compute", "H", "B H"),
        "biases": ("weight", "_"),
        "out_weight": ("weight", "R_out _"),
    },
    "rnn_sample": {
        "state": ("compute", "L B H"),
        "in_bias": ("weight or compute", "G*H", "B G*H"),
        "out_bias": ("weight or compute", "R_out"),
    },
    "univariate_transform": {"x": ("weight", "B D"), "parameters": ("weight", "B _")},
}
_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DTYPES: dict[str, tuple[torch.dtype, ...]] = {"int64": (torch.int64,), "int32": (torch.int32,), "bool": (torch.bool,)}

_said: set[str] = set()


def call(name: str, why: str, *arguments: Any) -> Any:
    """Calls the reference of the op ``name`` with its schema's arguments; warns once that it runs, and why."""
    if why not in _said and not torch.compiler.is_compiling():
        _said.add(why)
        warnings.warn(f"ar_fast: {why} the plain-torch references run; they are slow", stacklevel=4)
    check(name, arguments)
    device = next((tensor.device.type for _, _, tensor in _tensors(name, arguments)), "cpu")
    # Autocast changes the products of masked layers as those of F.linear. All other ops compute in float32, whatever a
    # layer before them gave.
    if name.startswith("masked_linear") or not torch.is_autocast_enabled(device):
        return REFERENCES[name](*arguments)
    with torch.autocast(device, enabled=False):
        return REFERENCES[name](*map(_widened, arguments))


def _widened(value: Any) -> Any:
    """A tensor of 16 bits, or a list of them, in float32."""
    if isinstance(value, list):
        return [_widened(element) for element in value]
    is_16_bit = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_16_bit else value


def types_of(name: str) -> dict[str, Any]:
    """The names of an op's arguments in the order of its schema, and their types."""
    hints = typing.get_type_hints(REFERENCES[name])
    return {argument: hints[argument] for argument in inspect.signature(REFERENCES[name]).parameters}


_TYPES = {name: types_of(name) for name in REFERENCES}


def check(name: str, arguments: Sequence[Any]) -> None:
    """Raises if the op ``name`` does not take these arguments.

    Raises:
        TypeError: if an argument has another type than the schema says.
        RuntimeError: if a dtype, shape, device or name breaks a rule of the op.
    """
    _check_types(name, arguments)
    tensors = list(_tensors(name, arguments))
    first, device = tensors[0][1], tensors[0][2].device
    for _, label, tensor in tensors:
        if tensor.device != device:
            raise RuntimeError(f"{name}: {label} must be on the device of {first}, {device}, got {tensor.device}")
    op = _library.op(name)
    # torch.compile cannot trace a call that leaves the transforms of torch.func.
    if op is None or torch.compiler.is_compiling():
        check_by_table(name, arguments)
    else:
        _check_by_meta_kernel(op, device.type, arguments)
    if name == "masked_mlp_flow":
        _check_permutations(name, dict(zip(_TYPES[name], arguments, strict=False))["orders"])


def _check_permutations(name: str, orders: list[Tensor]) -> None:
    """As the compiled op does where values can be looked at: log_det is that of permutations alone."""
    for index, order in enumerate(orders):
        if type(order) is not Tensor or order.device.type != "cpu" or torch.compiler.is_compiling():
            continue
        if len(order) and not torch.equal(order.sort().values, torch.arange(len(order))):
            raise RuntimeError(
                f"{name}: orders[{index}] must be a permutation of 0 ... D-1 = {len(order) - 1}, got {order.tolist()}"
            )


def _is(value: object, kind: Any) -> bool:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return any(_is(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_is(element, typing.get_args(kind)[0]) for element in value)
    if kind in (int, float):
        return isinstance(value, (Integral, torch.SymInt) if kind is int else (float, Integral))
    return isinstance(value, kind)


def _check_types(name: str, arguments: Sequence[Any]) -> None:
    for value, (argument, kind) in zip(arguments, _TYPES[name].items(), strict=False):
        if not _is(value, kind):
            kind = getattr(kind, "__name__", kind) if typing.get_origin(kind) is None else kind
            raise TypeError(f"{name}: {argument} must be {kind}, got {type(value).__name__}")


def _tensors(name: str, arguments: Sequence[Any]) -> Iterator[tuple[str, str, Tensor]]:
    """For each tensor: the argument's name, its name in messages, and the tensor itself."""
    for value, argument in zip(arguments, _TYPES[name], strict=False):
        if isinstance(value, Tensor):
            yield argument, argument, value
        elif isinstance(value, list):
            for i, element in enumerate(value):
                if isinstance(element, Tensor):
                    yield argument, f"{argument}[{i}]", element


def _check_by_meta_kernel(op: Any, device: str, arguments: Sequence[Any]) -> None:
    # The autocast rule of an op is registered for real devices, so meta tensors must be dispatched to it explicitly.
    key = f"Autocast{device.upper()}"
    cast = torch.is_autocast_enabled(device) and torch._C._dispatch_has_kernel_for_dispatch_key(op._name, key)
    autocast_dtype = torch.get_autocast_dtype(device) if cast else None

    def on_meta(value: Any) -> Any:
        if isinstance(value, list):
            return [on_meta(element) for element in value]
        if not isinstance(value, Tensor):
            return value
        casts = cast and value.is_floating_point() and value.dtype != torch.float64
        return torch.empty(value.shape, dtype=autocast_dtype if casts else value.dtype, device="meta")

    # A tensor under torch.func transforms is a wrapper, which has the shape that the function sees. Meta tensors made
    # outside of the transforms are plain ones.
    with temporarily_clear_interpreter_stack(), torch.no_grad():
        meta = [on_meta(value) for value in arguments]
        if cast:
            op.redispatch(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)), *meta)
        else:
            op(*meta)


def check_by_table(name: str, arguments: Sequence[Any]) -> None:
    """Checks a call by the rules of ``TENSORS``, which are a part of the rules of the compiled op."""
    given = dict(zip(_TYPES[name], arguments, strict=False))
    sizes = {"D": math.prod(given["grid"])} if "grid" in given else {}
    if "variables" in given:
        sizes["D"] = given["variables"]
    tensors = list(_tensors(name, arguments))
    rules = TENSORS | _OWN.get(name, {})
    weight = next((tensor.dtype for argument, _, tensor in tensors if rules[argument][0] == "weight"), None)
    if "weight" in given:
        weight = given["weight"].dtype
    for argument, label, tensor in tensors:
        dtype, *shapes = rules[argument]
        _check_dtype(name, label, tensor, dtype, weight)
        if not any(_fits(tensor.shape, shape.split(), sizes) for shape in shapes):
            rule = " or ".join(f"({', '.join(shape.split())})" for shape in shapes)
            known = ", ".join(f"{size} = {sizes[size]}" for size in sizes if size in rule)
            known = f" with {known}" if known else ""
            raise RuntimeError(f"{name}: {label} must have shape {rule}{known}, got {list(tensor.shape)}")


def _check_dtype(name: str, label: str, tensor: Tensor, rule: str, weight: torch.dtype | None) -> None:
    if rule == "any" or (
        rule not in _DTYPES and tensor.is_floating_point() and torch.is_autocast_enabled(tensor.device.type)
    ):
        return
    if rule in _DTYPES:
        allowed = _DTYPES[rule]
    elif rule == "floating" or weight not in _FLOATING:
        allowed = _FLOATING
    else:
        compute = compute_dtype(weight)
        allowed = {"weight": (weight,), "compute": (compute,), "weight or compute": (weight, compute)}[rule]
    if tensor.dtype not in allowed:
        raise RuntimeError(f"{name}: {label} must be {' or '.join(map(str, allowed))}, got {tensor.dtype}")


def _fits(shape: Sequence[int], names: list[str], sizes: dict[str, int]) -> bool:
    """Whether a shape matches these names of sizes; if it does, the sizes that it defines are added to ``sizes``."""
    if names[0] == "...":
        names, shape = names[1:], shape[-1:]
    if len(shape) != len(names):
        return False
    found = dict(sizes)
    for size, name in zip(shape, names, strict=True):
        if name != "_" and size != (int(name) if name.isdigit() else _size(name, size, found)):
            return False
    sizes.update(found)
    return True


def _size(name: str, size: int, sizes: dict[str, int]) -> int:
    if name.endswith("+1"):
        return sizes[name[:-2]] + 1
    return sizes.setdefault(name, size)
