"""The launches of the reference cases of bench/prediction, as the launchers make them: under the emulation, not run.

python tests/launch_geometry.py            # compares with bench/prediction/launches.json
python tests/launch_geometry.py --update   # writes it
"""

import contextlib
import ctypes
import json
import sys
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import emulated

from ar_fast import _library, functional
from ar_fast.models import MADE, sampling
from bench.masked_linear import staircase
from bench.prediction.cases import CASES, Case
from bench.prediction.kernels import LAUNCHES

LINEAR_CUT = ["rows", "columns", "matrix", "chunk"]
MADE_CUT = ["block", "warps", "rows", "chunk"]
RNN_CUT = ["unit_blocks", "units", "draw_blocks"]
NADE_CUT = ["chunk", "chunks", "strip", "strips", "rows", "tile", "tiles", "segments"]


@contextlib.contextmanager
def recorded():
    """Launches, and products by torch's GEMM, are noted and not run: a list that is filled on the way out."""
    library, notes = emulated.load(), []
    library.ar_fast_emulation_record.restype = ctypes.c_char_p
    library.ar_fast_emulation_record.argtypes = [ctypes.c_bool]
    library.ar_fast_emulation_record(True)
    try:
        with _library.use("ar_fast_emulated"):
            yield notes
    finally:
        for line in library.ar_fast_emulation_record(False).decode().splitlines():
            kernel, *numbers = line.split()
            numbers = [int(number) for number in numbers]
            if kernel == "product":
                notes.append({"kernel": kernel, **dict(zip(("rows", "columns", "sum"), numbers, strict=True))})
                continue
            notes.append(
                {"kernel": kernel, "grid": numbers[:3], "block": numbers[3:6], "shared": numbers[6],
                 "co_resident": bool(numbers[7])}
            )  # fmt: skip


def _nade(case: Case) -> None:
    """Values do not matter, so nothing is filled: the memory of the largest case is never touched."""
    variables, hidden = case.variables, case.hidden
    weights = {name: torch.empty(variables, hidden) for name in ("in_weight", "out_weight")}
    out_bias = torch.empty(variables)
    if case.kind == "nade sampling":
        functional.nade_sample(torch.empty(case.batch, hidden), **weights, out_bias=out_bias, seed=0)
        return
    leaves = {"in_bias": torch.empty(hidden), "out_bias": out_bias, **weights}
    training = case.kind == "nade forward+backward"
    for leaf in leaves.values():
        leaf.requires_grad_(training)
    log_prob = functional.nade_log_prob(torch.empty(case.batch, variables), **leaves)
    if training:
        torch.autograd.grad(log_prob.sum(), list(leaves.values()))


def _made(case: Case) -> None:
    """Tensors are on the CPU, where fewer rows are drawn together."""
    model = MADE(case.variables, list(case.layers[1:-1]))
    together = mock.patch.object(sampling, "_BLOCK_ELEMENTS", sampling._BLOCK_ELEMENTS_ON_CUDA)
    with torch.no_grad(), together:
        model.sample(case.batch, seed=0)


def _linear(case: Case) -> None:
    inputs, outputs = case.layers
    dtype = getattr(torch, case.dtype)
    functional.masked_linear(
        torch.empty(case.batch, inputs, dtype=dtype),
        torch.empty(outputs, inputs, dtype=dtype),
        staircase(inputs, outputs),
    )


def _rnn(case: Case) -> None:
    dtype, hidden, (outputs,) = getattr(torch, case.dtype), case.hidden, case.layers
    gates = 3 * hidden
    functional.rnn_sample(
        torch.empty(1, case.batch, hidden), torch.empty(case.batch), torch.empty(outputs, gates),
        torch.empty(gates, dtype=dtype), [torch.empty(gates, hidden, dtype=dtype)], [torch.empty(gates, dtype=dtype)],
        torch.empty(outputs, hidden, dtype=dtype), torch.empty(outputs, dtype=dtype), cell="gru", head="categorical",
        seed=0, stop=case.steps,
    )  # fmt: skip


def _cut(case: Case) -> dict[str, int]:
    library = emulated.load()
    if case.kind == "rnn_sample":
        values = (ctypes.c_int64 * len(RNN_CUT))()
        sizes = [ctypes.c_int64(size) for size in (case.hidden, case.batch, *case.layers)]
        assert library.ar_fast_test_rnn_cut(*sizes, ctypes.c_bool(case.dtype == "bfloat16"), values) == 0
        return dict(zip(RNN_CUT, values, strict=True))
    if case.kind == "made sampling":
        values, widths = (ctypes.c_int64 * len(MADE_CUT))(), (ctypes.c_int64 * len(case.layers))(*case.layers)
        sizes = [ctypes.c_int64(size) for size in (len(case.layers) - 1, case.batch)]
        library.ar_fast_test_masked_mlp_cut(widths, *sizes, values)
        return dict(zip(MADE_CUT, values, strict=True))
    if case.kind.startswith("nade forward"):
        values = (ctypes.c_int64 * len(NADE_CUT))()
        sizes = [ctypes.c_int64(size) for size in (case.variables, case.hidden, case.batch)]
        library.ar_fast_test_nade_cut(*sizes, values)
        return dict(zip(NADE_CUT, values, strict=True))
    if case.kind == "masked_linear":
        values = (ctypes.c_int64 * len(LINEAR_CUT))()
        sizes = [ctypes.c_int64(size) for size in (case.batch, *reversed(case.layers))]
        assert library.ar_fast_test_masked_linear_cut(*sizes, ctypes.c_bool(case.dtype == "bfloat16"), values) == 0
        return dict(zip(LINEAR_CUT, values, strict=True))
    return {}


def geometry(case: Case) -> dict:
    call = {"made sampling": _made, "masked_linear": _linear, "rnn_sample": _rnn}.get(case.kind, _nade)
    with emulated.gpu(capability=9, multiprocessors=132), recorded() as launches:
        call(case)
    return {"cut": _cut(case), "launches": launches}


def collect() -> dict[str, dict]:
    return {case.name: geometry(case) for case in CASES}


def main() -> int:
    found = collect()
    if "--update" in sys.argv:
        lines = [f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items()]
        LAUNCHES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    committed = json.loads(LAUNCHES.read_text())
    for name, entry in found.items():
        if committed.get(name) != entry:
            print(f"{name}: {committed.get(name)} in {LAUNCHES.name}, now {entry}", file=sys.stderr)
    return int(found != committed)


if __name__ == "__main__":
    sys.exit(main())
