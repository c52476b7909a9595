"""The functions over the ops: which implementation answers, and that all of them refuse the same bad calls."""

import inspect
import warnings

import pytest
import torch
from op_cases import GOOD, nade_arguments

from ar_fast import Mask, _fallback, _library, functional

OP = _library.op
int64, float64 = torch.int64, torch.float64
KINDS = torch.zeros(4, 2, dtype=int64)  # Bernoulli variables, one by one
BAD = [
    ("nade", {"x": torch.zeros(4)}, r"x must have shape \(B, D\), got \[4\]"),
    ("nade", {"x": torch.zeros(2, 4, dtype=float64)}, "x must be bool, integer, .* got .*(float64|Double)"),
    ("nade", {"x": torch.zeros(2, 4, dtype=torch.complex64)}, "x must be real, got"),
    ("nade", {"in_weight": torch.ones(8, 3)}, "x must be an integer category .* got"),
    (
        "nade",
        {"x": torch.zeros(2, 4, dtype=int64), "in_weight": torch.ones(6, 3)},
        "in_weight must have a multiple of D = 4 rows",
    ),
    (
        "nade",
        {"out_weight": torch.ones(6, 3), "out_bias": torch.ones(6)},
        "out_weight must have a multiple of D = 4 rows",
    ),
    ("nade", {"in_weight": torch.ones(4)}, "in_weight must have shape .* got"),
    ("nade", {"in_weight": torch.ones(4, 3, dtype=int64)}, "in_weight must be .*float.* got"),
    ("nade", {"in_bias": torch.ones(4)}, r"in_bias must have .* got (shape )?\[4\]"),
    ("nade", {"in_bias": torch.ones(3, 3)}, r"in_bias must have .* got (shape )?\[3, 3\]"),
    ("nade", {"in_bias": torch.ones(3, dtype=float64)}, "in_bias must have the dtype of in_weight"),
    ("nade", {"out_weight": torch.ones(4, 2)}, r"out_weight must have .* got (shape )?\[4, 2\]"),
    ("nade", {"out_bias": torch.ones(3)}, r"out_bias must have .* got (shape )?\[3\]"),
    ("nade", {"order": torch.arange(3)}, r"order must have .* got (shape )?\[3\]"),
    ("nade", {"order": torch.arange(4.0)}, "order must be .*(int64|Long), got .*(float32|Float)"),
    ("nade", {"out_offsets": torch.arange(4)}, r"out_offsets must have .* got (shape )?\[4\]"),
    ("nade", {"activation_scale": torch.ones(3)}, r"activation_scale must have .* got (shape )?\[3\]"),
    ("nade", {"activation": "softmax"}, "activation must be .*, got 'softmax'"),
    ("nade_log_prob", {"out_weight": torch.ones(8, 3), "out_bias": torch.ones(8)}, "out_weight must have .* got 8"),
    ("nade_log_prob", {"head": "gaussian_mixture"}, "out_weight must have 3 K rows per variable .* got 4"),
    ("nade_log_prob", {"head": "gauss"}, "head must be .*, got 'gauss'"),
    ("nade_log_prob", {"levels": 8}, "levels must be 0 except for logistic_mixture, got 8"),
    ("head_log_prob", {"parameters": torch.ones(4)}, r"parameters must have shape \(B, R_out\), got \[4\]"),
    ("head_log_prob", {"parameters": torch.ones(2, 4, dtype=torch.bfloat16)}, "parameters must be .*float32"),
    ("head_log_prob", {"x": torch.ones(3, 4)}, r"x must have .* got (shape )?\[3, 4\]"),
    ("head_log_prob", {"parameters": torch.ones(2, 6)}, "parameters must have a multiple of D = 4 columns"),
    ("head_log_prob", {"offsets": torch.arange(4)}, r"offsets must have .* got (shape )?\[4\]"),
    ("head_log_prob", {"head": "logistic_mixture", "levels": 0}, "levels must be at least 2 .* got 0"),
    ("head_log_prob", {"head": "per_variable"}, "head_kinds must be given for a per_variable head .*, got none"),
    ("head_log_prob", {"head_kinds": KINDS}, "head_kinds must be given .* and for no other, got some for 'bernoulli'"),
    ("head_log_prob", {"head": "per_variable", "head_kinds": KINDS[:3]}, "head_kinds must have .*3, 2"),
    ("head_log_prob", {"head": "per_variable", "head_kinds": KINDS.int()}, "head_kinds must be .*(int64|Long), got"),
    ("nade_log_prob", {"head": "per_variable", "head_kinds": KINDS, "x": KINDS.T}, "x must be floating for a per_var"),
    ("nade_log_prob", {"in_offsets": torch.arange(5)}, "x must be an integer category .*, except for a per_var"),
    (
        "nade_sample",
        {"head": "per_variable", "head_kinds": KINDS, "in_weight": torch.ones(8, 3), "variables": 4},
        "in_weight must have one row per variable, 4, for a per_variable head unless in_offsets is given",
    ),
    ("nade_sample", {"head": "per_variable"}, "head_kinds must be given for a per_variable head .*, got none"),
    ("offset_nade_sample", {"head": "per_variable"}, "head must be .*, got 'per_variable'"),
    ("fvsbn_sample", {"head": "per_variable", "head_kinds": KINDS}, "in_offsets must be given .*, got none"),
    ("armlp_sample", {"in_offsets": torch.arange(5)}, "in_offsets must be given .* and for no other, got some"),
    ("nade_sample", {"state": torch.zeros(2, 4)}, r"state must have .* got (shape )?\[2, 4\]"),
    ("nade_sample", {"state": torch.zeros(2, 3, dtype=float64)}, "state must be .*(float32|Float), got"),
    ("nade_sample", {"out_bias": torch.ones(3)}, r"out_bias must have .* got (shape )?\[3\]"),
    ("nade_sample", {"given": torch.zeros(2, 4)}, "given and known come together, got only given"),
    ("nade_sample", {"given": torch.zeros(2, 4), "known": torch.zeros(2, 4)}, "known must be .*(bool|Bool), got"),
    ("nade_sample", {"given": torch.zeros(2, 3), "known": torch.zeros(2, 4).bool()}, "given must have .* got"),
    (
        "nade_sample",
        {"start": 3, "stop": 2},
        "positions must satisfy 0 <= start <= stop <= D = 4, got start = 3, stop = 2",
    ),
    ("nade_sample", {"stop": 5}, "positions must satisfy 0 <= start <= stop <= D = 4, got start = 0, stop = 5"),
    ("nade_sample", {"temperature": 0.0}, "temperature must be positive"),
    ("nade_sample", {"variables": 0}, "variables must be positive, got 0"),
    ("nade_sample", {"head": "categorical", "variables": 3, "stop": 3}, "in_weight must have a multiple of D = 3 rows"),
    ("nade_sample", {"head": "mixture"}, "head must be .*, got 'mixture'"),
    ("nade_sample", {"activation": "gelu"}, "activation must be .*, got 'gelu'"),
    ("offset_nade_sample", {"state": torch.zeros(2, 5)}, r"state must have .* got (shape )?\[2, 5\]"),
    ("offset_nade_sample", {"grid": (2, 3)}, r"grid must be .* got \[2, 3\]"),
    ("offset_nade_sample", {"window": (0, 0)}, r"window must be .* got \[0, 0\]"),
    ("offset_nade_sample", {"in_weight": torch.ones(5, 3)}, r"in_weight must have .* got (shape )?\[5, 3\]"),
    ("offset_nade_sample", {"out_bias": torch.ones(2)}, r"out_bias must have .* got (shape )?\[2\]"),
    ("offset_nade_sample", {"shared_output": False}, "out_weight must have K rows per variable, a multiple of 6, got"),
    ("offset_nade_sample", {"head": "gaussian_mixture"}, "out_weight must have 3 K rows per variable .* got 1"),
    ("offset_nade_sample", {"stop": 7}, "positions must satisfy 0 <= start <= stop <= D = 6, got start = 0, stop = 7"),
    ("offset_nade_sample", {"activation": "gelu"}, "activation must be .*, got 'gelu'"),
    ("rnn_sample", {"cell": "elman"}, "cell must be gru, lstm, rnn or rnn_relu, got 'elman'"),
    ("rnn_sample", {"state": torch.zeros(2, 2, 4)}, r"state must have .* got (shape )?\[2, 2, 4\]"),
    ("rnn_sample", {"state": torch.zeros(2, 2, 3, dtype=float64)}, "state must be .*(float32|Float), got"),
    ("rnn_sample", {"cell_state": None}, "cell_state must be given for an lstm, .* got none for 'lstm'"),
    ("rnn_sample", {"recurrent_biases": [torch.ones(12)]}, "recurrent_biases must hold one tensor per layer, 2, got 1"),
    ("rnn_sample", {"in_table": torch.ones(2, 12)}, r"in_table must have 1 row.* got (shape )?\[2, 12\]"),
    ("rnn_sample", {"head": "gaussian_mixture"}, "out_weight must have 3 K rows per variable .* got 1"),
    ("rnn_sample", {"head": "per_variable"}, "head must be .*, got 'per_variable'"),
    ("rnn_sample", {"top_k": 1}, "top_k and top_p must be 0 and 1 except for a categorical head, got 1 and 1"),
    ("rnn_sample", {"stop_token": 0}, "stop_token must be -1 for none, or a category of a categorical head, got 0"),
    ("rnn_sample", {"stop": 5}, "positions must satisfy 0 <= start <= stop <= D = 4, got start = 0, stop = 5"),
    ("masked_linear", {"input": torch.ones(2, 4)}, r"input must have shape \(\.\.\., 3\).* got \[2, 4\]"),
    ("masked_linear", {"input": torch.ones(2, 3, dtype=float64)}, "input must have the dtype of weight"),
    ("masked_linear", {"bias": torch.ones(3)}, r"bias must have .* got (shape )?\[3\]"),
    (
        "masked_linear_grad_input",
        {"grad_output": torch.ones(2, 3)},
        r"grad_output must have shape \(\.\.\., 4\).* got \[2, 3\]",
    ),
    (
        "masked_linear_grad_input",
        {"grad_output": torch.ones(2, 4, dtype=float64)},
        "grad_output must have the dtype of weight",
    ),
    ("armlp_sample", {"state": torch.zeros(2, 3)}, r"in_bias must have .* got (shape )?\[4, 3\]"),
    ("armlp_sample", {"state": torch.zeros(2, 4, dtype=float64)}, "state must be .*(float32|Float), got"),
    ("armlp_sample", {"block_starts": torch.tensor([0])}, r"block_starts must have .* got (shape )?\[1\]"),
    ("armlp_sample", {"in_bias": torch.ones(3, 4, 3)}, r"in_bias must have .* got (shape )?\[3, 4, 3\]"),
    ("armlp_sample", {"in_bias": torch.ones(4, 3, dtype=float64)}, "in_bias must .* got .*(float64|Double)"),
    ("armlp_sample", {"out_weight": torch.ones(4, 2)}, r"out_weight must have .* got (shape )?\[4, 2\]"),
    ("armlp_sample", {"out_bias": torch.ones(3)}, r"out_bias must have .* got (shape )?\[3\]"),
    ("armlp_sample", {"order": torch.arange(3)}, r"order must have .* got (shape )?\[3\]"),
    ("armlp_sample", {"offsets": torch.arange(4)}, r"offsets must have .* got (shape )?\[4\]"),
    ("armlp_sample", {"activation": "gelu"}, "activation must be .*, got 'gelu'"),
    ("armlp_sample", {"head": "gaussian_mixture"}, "out_weight must have 3 K rows per variable .* got 4"),
    ("armlp_sample", {"stop": 5}, "positions must satisfy 0 <= start <= stop <= D = 4, got start = 0, stop = 5"),
    ("armlp_sample", {"temperature": 0.0}, "temperature must be positive"),
    ("deep_nade_sample", {"state": torch.zeros(2, 4)}, r"state must have .* got (shape )?\[2, 4\]"),
    ("deep_nade_sample", {"state": torch.zeros(2, 3, dtype=float64)}, "state must be .*(float32|Float), got"),
    ("deep_nade_sample", {"mask_weight": torch.ones(4, 2)}, r"mask_weight must have .* got (shape )?\[4, 2\]"),
    ("deep_nade_sample", {"mask_weight": torch.ones(4, 3, dtype=float64)}, "mask_weight must have the dtype of"),
    ("deep_nade_sample", {"weights": [torch.ones(5, 3)]}, "biases must hold one tensor per layer of weights, 1, got 2"),
    ("deep_nade_sample", {"weights": [torch.ones(5, 4), torch.ones(2, 5)]}, r"weights\[0\] must have 3 columns.* got"),
    ("deep_nade_sample", {"biases": [torch.ones(5), torch.ones(3)]}, r"biases\[1\] must have 2 entries.* got"),
    ("deep_nade_sample", {"out_weight": torch.ones(4, 3)}, r"out_weight must have 2 columns.* got (shape )?\[4, 3\]"),
    ("deep_nade_sample", {"out_bias": torch.ones(3)}, r"out_bias must have .* got (shape )?\[3\]"),
    ("deep_nade_sample", {"in_weight": torch.ones(8, 3)}, "in_weight must have one row per variable, 4, except for"),
    ("deep_nade_sample", {"activation": "gelu"}, "activation must be .*, got 'gelu'"),
    ("deep_nade_sample", {"head": "gaussian_mixture"}, "out_weight must have 3 K rows per variable .* got 4"),
    ("deep_nade_sample", {"given": torch.zeros(2, 4)}, "given and known come together"),
    ("deep_nade_sample", {"stop": 5}, "positions must satisfy 0 <= start <= stop <= D = 4, got start = 0, stop = 5"),
    ("deep_nade_sample", {"temperature": 0.0}, "temperature must be positive"),
    ("fvsbn_sample", {"state": torch.zeros(2, 3)}, r"state must have .* got (shape )?\[2, 3\]"),
    ("fvsbn_sample", {"state": torch.zeros(2, 4, dtype=float64)}, "state must be .*(float32|Float), got"),
    ("fvsbn_sample", {"weight": torch.ones(3, 4), "variables": 4}, r"weight must have one row per variable.* got"),
    ("fvsbn_sample", {"variables": 3}, "weight must have a multiple of D = 3 columns .* got shape"),
    ("fvsbn_sample", {"variables": 0}, "variables must be positive, got 0"),
    ("fvsbn_sample", {"order": torch.arange(3), "variables": 4}, r"order must have .* got (shape )?\[3\]"),
    ("fvsbn_sample", {"offsets": torch.arange(4), "variables": 4}, r"offsets must have .* got (shape )?\[4\]"),
    ("fvsbn_sample", {"head": "gaussian_mixture"}, "weight must have 3 K rows per variable .* got 4"),
    ("fvsbn_sample", {"given": torch.zeros(2, 4)}, "given and known come together, got only given"),
    ("fvsbn_sample", {"stop": 5}, "positions must satisfy 0 <= start <= stop <= D = 4, got start = 0, stop = 5"),
    ("fvsbn_sample", {"temperature": 0.0}, "temperature must be positive"),
    ("univariate_transform", {"x": torch.ones(4)}, r"x must have shape \(B, D\), got \[4\]"),
    ("univariate_transform", {"x": torch.ones(2, 4, dtype=int64)}, "x must be .*float32.* got"),
    ("univariate_transform", {"parameters": torch.ones(3, 8)}, r"parameters must have .* got (shape )?\[3, 8\]"),
    ("univariate_transform", {"parameters": torch.ones(2, 8, dtype=float64)}, "parameters must have the dtype of x"),
    ("univariate_transform", {"parameters": torch.ones(2, 12)}, "parameters must have 2 rows per variable .* got 12"),
    ("univariate_transform", {"transform": "bernoulli", "constants": []}, "transform must be the name of one, got"),
    ("univariate_transform", {"transform": "affine_cubic"}, "a transform must be .*, got 'affine_cubic'"),
    ("univariate_transform", {"constants": [1.0]}, "constants must hold 2 numbers for affine_clamp, got 1"),
    ("masked_mlp_flow", {"x": torch.ones(4)}, r"x must have shape \(B, D\), got \[4\]"),
    ("masked_mlp_flow", {"x": torch.ones(2, 4, dtype=int64)}, "x must be .*float32.* got"),
    ("masked_mlp_flow", {"weights": [torch.ones(3, 4)]}, "masks and biases must hold one tensor per weight, 1, got 2"),
    (
        "masked_mlp_flow",
        {"program": [functional.MlpLayer((0, 0)), functional.MlpLayer((1,))]},
        "weights must hold .* term of program, 3, for",
    ),
    (
        "masked_mlp_flow",
        {"masks": [torch.ones(3, 4)]},
        "masks and biases must hold one tensor per weight, 2, got 1 and 2",
    ),
    ("masked_mlp_flow", {"masks": [torch.ones(3, 4), torch.ones(8, 2)]}, r"masks\[1\] must have the shape"),
    (
        "masked_mlp_flow",
        {"biases": [torch.ones(3)]},
        "masks and biases must hold one tensor per weight, 2, got 2 and 1",
    ),
    ("masked_mlp_flow", {"biases": [torch.ones(2), torch.ones(8)]}, r"biases\[0\] must have shape .* got"),
    (
        "masked_mlp_flow",
        {"weights": [torch.ones(3, 4), torch.ones(8, 2)]},
        r"weights\[1\] must have shape .*, got (shape )?\[8, 2\]",
    ),
    ("masked_mlp_flow", {"orders": [torch.arange(4)] * 2}, "orders must hold one tensor per transform, 1, or none"),
    ("masked_mlp_flow", {"orders": [torch.arange(3)]}, r"orders\[0\] must be int64 of shape \(4\)"),
    ("masked_mlp_flow", {"context": torch.ones(3, 2)}, "context must have (shape .*, got|2 rows)"),
    ("masked_mlp_flow", {"context_columns": "after"}, "context must be given where the networks read it, got none"),
    ("masked_mlp_flow", {"context_columns": "left"}, "context_columns must be .*, got 'left'"),
    ("masked_mlp_flow", {"activation": "softmax"}, "activation must be .*, got 'softmax'"),
    ("masked_mlp_flow", {"constants": []}, "constants must hold 2 numbers for affine_clamp, got 0"),
    ("inverse_adjoint", {"grad": torch.ones(4)}, r"grad must have shape \(B, D\), got \[4\]"),
    ("inverse_adjoint", {"grad": torch.ones(2, 4, dtype=int64)}, "grad must be .*float32.* got"),
    ("inverse_adjoint", {"factors": torch.ones(3, 4)}, r"factors must have .* got (shape )?\[3, 4\]"),
    (
        "inverse_adjoint",
        {"factors": torch.ones(2, 4, dtype=float64)},
        "factors must (have the dtype of grad|be .*float32)",
    ),
    ("masked_mlp_sample", {"state": torch.zeros(2, 6)}, r"state must have .* got (shape )?\[2, 6\]"),
    ("masked_mlp_sample", {"biases": [torch.ones(3)]}, "biases must hold .*, 2, got 1"),
    ("masked_mlp_sample", {"unit_ends": []}, "unit_ends must hold one tensor per layer but the last, 1, got 0"),
    (
        "masked_mlp_sample",
        {"weights": [torch.ones(3, 5), torch.ones(4, 3)]},
        r"columns of weights\[0\] must be a multiple of D = 4 unless in_offsets is given, got 5",
    ),
    (
        "masked_mlp_sample",
        {"weights": [torch.ones(3, 4), torch.ones(4, 2)]},
        r"weights\[1\] must have .* got (shape )?\[4, 2\]",
    ),
    ("masked_mlp_sample", {"head": "gaussian_mixture"}, "the last layer must have 3 K rows per variable .* got 4"),
    (
        "masked_mlp_sample",
        {"in_offsets": torch.arange(5)},
        r"weights\[0\] must have one column per variable, 4, except for",
    ),
    ("masked_mlp_sample", {"out_offsets": torch.arange(4), "variables": 4}, "out_offsets must have .*4"),
    ("masked_mlp_sample", {"variables": 0, "stop": 0}, "variables must be positive, got 0"),
    (
        "masked_mlp_sample",
        {"constants": [1.0]},
        "constants must be empty except for a transform as head, got 1 of them",
    ),
    ("masked_mlp_sample", {"levels": 8}, "levels must be 0 except for logistic_mixture, got 8"),
    ("masked_mlp_sample", {"stop": 5}, "positions must satisfy 0 <= start <= stop <= D = 4, got start = 0, stop = 5"),
    ("masked_mlp_sample", {"activation": "softmax"}, "activation must be .*, got 'softmax'"),
]


@pytest.fixture
def nothing_compiled(monkeypatch):
    monkeypatch.setattr(_library, "entry_point", lambda name: None)
    monkeypatch.setattr(_library, "op", lambda name: None)
    monkeypatch.setattr(_fallback, "_said", {"with AR_FAST_BACKEND=reference"})


def message_of(call, *arguments, **options):
    with pytest.raises((RuntimeError, TypeError)) as error:
        call(*arguments, **options)
    return str(error.value)


@pytest.mark.parametrize("name, changes, message", BAD)
def test_bad_calls(implementation, name, changes, message):
    with pytest.raises(RuntimeError, match=f"{name}: {message}"):
        getattr(functional, name)(**GOOD[name]() | changes)


@pytest.mark.parametrize("name", GOOD)
def test_good_calls(implementation, name):
    if name == "fvsbn_sample" and _library.entry_point(name) is not None:
        pytest.skip("its kernel is for CUDA only")
    getattr(functional, name)(**GOOD[name]())


@pytest.mark.parametrize("name", GOOD)
def test_good_calls_where_nothing_was_compiled(nothing_compiled, name):
    getattr(functional, name)(**GOOD[name]())


def changed(tensor):
    """A tensor with one thing about it changed: its dtype, its dimensions, one of its sizes."""
    others = {torch.float32: float64, int64: torch.int32, torch.int32: int64, torch.bool: int64}
    yield tensor.to(others[tensor.dtype])
    yield tensor.to(torch.complex64)
    yield tensor.unsqueeze(0).unsqueeze(0)
    for dim in range(tensor.dim()):
        yield torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim)


def arguments_of(name, monkeypatch):
    """The arguments of an op by its schema, with every tensor that it can have at once."""
    got = []
    optional = {
        "order": torch.arange(4),
        "activation_scale": torch.ones(4),
        "given": torch.ones(2, 4),
        "known": torch.ones(2, 4).bool(),
        "offsets": torch.arange(5),
        "out_offsets": torch.arange(5),
        "head_kinds": KINDS,
        "in_offsets": torch.arange(5),
    }
    if name == "offset_nade_sample":
        optional |= {"order": torch.arange(6), "given": torch.ones(2, 6), "known": torch.ones(2, 6).bool()}
    if "linear" in name:
        blocks = torch.tensor([[True, False, True], [False, True, True], [True, True, False], [True, True, True]])
        optional["mask"] = Mask.from_dense(blocks)
    taken = inspect.signature(getattr(functional, name)).parameters
    optional = {argument: value for argument, value in optional.items() if argument in taken}
    if "head_kinds" in taken:
        optional["head"] = "per_variable"

    class Recorded(Exception):
        pass

    def record(name, *arguments):
        got.extend(arguments)
        raise Recorded

    for name_of_module in ("densities", "grids", "masked", "recurrent", "sampling", "transforms"):
        module = getattr(functional, name_of_module)
        monkeypatch.setattr(module, "call", record)
    with pytest.raises(Recorded):
        getattr(functional, name)(**GOOD[name]() | optional)
    monkeypatch.undo()
    return got


@pytest.mark.skipif(not _library._has_ops, reason="nothing was compiled")
@pytest.mark.parametrize("name", GOOD)
def test_what_the_table_refuses_the_compiled_op_refuses_too(name, monkeypatch):
    """And the table refuses something about every tensor; its messages name the argument."""
    arguments = arguments_of(name, monkeypatch)
    _fallback.check(name, arguments)
    _fallback.check_by_table(name, arguments)
    for i, (argument, value) in enumerate(zip(_fallback.types_of(name), arguments, strict=False)):
        several = isinstance(value, list) and value and isinstance(value[0], torch.Tensor)
        if not several and not isinstance(value, torch.Tensor):
            continue
        refused = 0
        for tensor in changed(value[0] if several else value):
            bad = list(arguments)
            bad[i] = [tensor, *value[1:]] if several else tensor
            try:
                _fallback.check_by_table(name, bad)
            except RuntimeError as error:
                refused += 1
                assert f"{name}: " in str(error) and ", got " in str(error)
                assert f"{name}: " in message_of(_fallback.check, name, bad), argument
        assert refused > 0, argument


@pytest.mark.skipif(not _library._has_ops, reason="nothing was compiled")
@pytest.mark.parametrize("name", GOOD)
def test_the_references_have_the_arguments_of_the_schemas(name):
    names = {
        "Tensor": torch.Tensor,
        "Optional[Tensor]": torch.Tensor | None,
        "List[Tensor]": list[torch.Tensor],
        "List[int]": list[int],
        "List[float]": list[float],
        "Optional[str]": str | None,
        "int": int,
        "float": float,
        "bool": bool,
        "str": str,
    }
    schema = {argument.name: names[str(argument.type)] for argument in _library.op(name)._schema.arguments}
    assert list(schema) == list(_fallback.types_of(name))
    assert schema == _fallback.types_of(name)
    assert set(functional.__all__) == set(_fallback.REFERENCES)


def test_the_table_has_a_rule_for_every_tensor():
    for name in _fallback.REFERENCES:
        rules = _fallback.TENSORS | _fallback._OWN.get(name, {})
        tensors = {argument for argument, kind in _fallback.types_of(name).items() if "Tensor" in str(kind)}
        assert tensors - set(rules) == set(), name


@pytest.mark.parametrize("compiled", [True, False])
def test_types_and_devices_of_a_call_that_a_reference_answers(compiled, nothing_compiled, monkeypatch):
    if compiled and _library._has_ops:
        monkeypatch.setattr(_library, "op", OP)
    for name, changes, message in (
        ("nade", {"in_weight": [1.0]}, "in_weight must be Tensor, got list"),
        ("nade", {"order": [0, 1, 2, 3]}, "order must be .*Tensor.*None, got list"),
        ("nade_log_prob", {"levels": 1.5}, "levels must be int, got float"),
        ("nade_sample", {"seed": None}, "seed must be int, got NoneType"),
        ("masked_mlp_sample", {"biases": [1, 2]}, "biases must be list.*Tensor.*, got list"),
    ):
        with pytest.raises(TypeError, match=f"{name}: {message}"):
            getattr(functional, name)(**GOOD[name]() | changes)
    for name, argument in (("nade", "out_bias"), ("head_log_prob", "x"), ("armlp_sample", "block_starts")):
        bad = {argument: GOOD[name]()[argument].to("meta")}
        first = next(iter(_fallback.types_of(name)))
        with pytest.raises(RuntimeError, match=f"{name}: .* must be on the device of {first}"):
            getattr(functional, name)(**GOOD[name]() | bad)


@pytest.mark.skipif(not _library._has_ops, reason="nothing was compiled")
@pytest.mark.filterwarnings("ignore:ar_fast. under torch.func transforms")
def test_under_transforms_a_call_is_checked_by_the_shapes_that_the_function_sees():
    arguments = nade_arguments()

    def log_prob(x, weight):
        return functional.nade_log_prob(**arguments | {"x": x, "in_weight": weight}).sum()

    x, weights = torch.ones(5, 2, 4), torch.ones(5, 4, 3)
    for in_dims, weight in (((0, None), weights[0]), ((0, 0), weights), ((0, 2), weights.permute(1, 2, 0))):
        torch.func.vmap(torch.func.grad(log_prob), in_dims=in_dims)(x, weight)
    per_sample = torch.func.vmap(torch.func.grad(log_prob), in_dims=(0, None))
    with pytest.raises(RuntimeError, match=r"nade_log_prob: out_weight must have 4 hidden units, as in_weight has"):
        per_sample(x, torch.ones(4, 4))
    with pytest.raises(RuntimeError, match=r"nade_log_prob: x must have shape \(B, D\), got \[4\]"):
        torch.func.vmap(per_sample, in_dims=(1, None))(x, weights[0])
    with pytest.raises(RuntimeError, match=r"activation must be .*, got 'softmax'"):
        torch.func.jvp(lambda x: functional.nade(**arguments | {"x": x, "activation": "softmax"}), (x[0],), (x[0],))


@pytest.mark.parametrize("name", ["nade", "nade_log_prob", "head_log_prob", "masked_linear"])
def test_autocast_is_followed_before_a_call_is_checked(name, implementation):
    arguments = GOOD[name]()
    mixed = {"x": arguments["x"].bfloat16()} if "x" in arguments else {"input": arguments["input"].bfloat16()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        getattr(functional, name)(**arguments | mixed)
        if name == "nade":
            with pytest.raises(RuntimeError, match=f"{name}: x must be real"):
                getattr(functional, name)(**arguments | {"x": arguments["x"].to(torch.complex64)})


@pytest.mark.parametrize("name", GOOD)
def test_autocast_where_nothing_was_compiled(nothing_compiled, name):
    def low(value):
        if isinstance(value, list):
            return [low(one) for one in value]
        return value.bfloat16() if torch.is_tensor(value) and value.is_floating_point() else value

    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = getattr(functional, name)(**{key: low(value) for key, value in GOOD[name]().items()})
    first = result if torch.is_tensor(result) else result[0]
    assert first.dtype == (torch.bfloat16 if name.startswith("masked_linear") else torch.float32)


def test_a_reference_says_once_that_it_runs(monkeypatch):
    monkeypatch.setattr(_fallback, "_said", set())
    call = torch.func.grad(lambda x: functional.nade_log_prob(**nade_arguments() | {"x": x}).sum())
    with pytest.warns(UserWarning, match="under torch.func transforms the plain-torch references run; they are slow"):
        call(torch.zeros(2, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(torch.zeros(2, 4))
    monkeypatch.setattr(_library, "entry_point", lambda name: None)
    with pytest.warns(UserWarning, match="with AR_FAST_BACKEND=reference the plain-torch references"):
        functional.nade(**nade_arguments())
