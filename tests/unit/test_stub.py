"""The stub of _C says what the module has. ``python tests/unit/test_stub.py`` writes it from the ops' schemas."""

import ast
import re
from pathlib import Path

import pytest
import torch

from ar_fast import _library

STUB = Path(__file__).resolve().parents[2] / "ar_fast" / "_C.pyi"
TYPES = {
    "Tensor": "Tensor",
    "Optional[Tensor]": "Tensor | None",
    "List[Tensor]": "Sequence[Tensor]",
    "List[int]": "Sequence[int]",
    "List[float]": "Sequence[float]",
    "Optional[str]": "str | None",
    "str": "str",
    "int": "int",
    "float": "float",
    "bool": "bool",
}
# The functions and classes that are no ops.
OWN = {
    "StreamDecoder": """class StreamDecoder:
    def __init__(self, streams: Sequence[bytes]) -> None: ...
    def begin(self) -> None: ...
    def end(self, failed: bool) -> None: ...
""",
    "StreamEncoder": """class StreamEncoder:
    def __init__(self, streams: int) -> None: ...
    def begin(self, values: Tensor) -> None: ...
    def encode(self, stream: int, intervals: Tensor) -> None: ...
    def end(self, failed: bool) -> None: ...
    def finish(self) -> list[bytes]: ...
""",
    "explain_begin": "def explain_begin() -> None: ...",
    "explain_end": "def explain_end() -> list[str]: ...",
    "isa": "def isa() -> str: ...",
    "set_isa": "def set_isa(name: str) -> None: ...",
}


def names() -> list[str]:
    return sorted(name for name in dir(_library._C) if not name.startswith("__"))


def definition(name: str) -> str:
    if name in OWN:
        return OWN[name]
    schema = getattr(torch.ops.ar_fast, name).default._schema
    arguments = [f"    {argument.name}: {TYPES[str(argument.type)]},\n" for argument in schema.arguments]
    returns = ["Tensor" for _ in schema.returns]
    result = returns[0] if len(returns) == 1 else f"tuple[{', '.join(returns)}]"
    return f"def {name}(\n{''.join(arguments)}    /,\n) -> {result}: ..."


def stub() -> str:
    head = (
        '"""The compiled ops, by their schemas, the coders of streams, and the instruction set that they run on."""\n\n'
    )
    imports = "from collections.abc import Sequence\n\nfrom torch import Tensor\n\n"
    return head + imports + "".join(f"{definition(name)}\n" for name in names())


pytestmark = pytest.mark.skipif(_library._C is None, reason="nothing was compiled")


def test_the_stub_has_what_the_module_has():
    declared = {
        node.name: node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert sorted(declared) == names()
    for name, node in declared.items():
        if isinstance(node, ast.ClassDef):
            methods = [method.name for method in node.body if isinstance(method, ast.FunctionDef)]
            own = getattr(_library._C, name)
            public = {method for method in vars(own) if not method.startswith("_")}
            assert {*methods} - {"__init__"} == public
    assert STUB.read_text() == stub(), "run python tests/unit/test_stub.py"


def test_the_functions_take_the_arguments_of_the_schemas():
    """As pybind11 describes them."""
    for name in names():
        if isinstance(getattr(_library._C, name), type):
            continue
        said = re.findall(r"[(,] ?(\w+): ", getattr(_library._C, name).__doc__.splitlines()[0])
        (node,) = (node for node in ast.parse(definition(name)).body if isinstance(node, ast.FunctionDef))
        assert len(said) == len(node.args.posonlyargs) + len(node.args.args), name


if __name__ == "__main__":
    STUB.write_text(stub())
