"""The benchmarks run, agree with float64 and write their tables; at sizes too small to measure anything."""

# ruff: noqa: E402 (the path to bench/ is set first)

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from grids import skip_module_without

skip_module_without("bench", "sklearn")

# bench/ is not installed. At the end, so that an installed ar_fast comes before this folder's.
ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from ar_fast.tasks._timing import interleave
from bench import masked_linear, peers, rnn
from bench.run import SUITES, Row, run_case, select
from bench.settings import Settings
from bench.tables import grid_table

SETTINGS = Settings(torch.device("cpu"), tiny=True, seconds=0.001, compile_seconds=0)


@pytest.mark.full
@pytest.mark.parametrize("suite", SUITES)
def test_every_contender_is_right(suite):
    for case in select(SETTINGS, [suite]):
        rows = run_case(case, SETTINGS)
        assert [row.contender for row in rows] == list(case.contenders)
        for row in rows:
            assert row.skipped is None and row.median > 0, f"{case.title}: {row}"
            if row.contender == rnn.PRODUCT:
                assert row.error is None
            else:
                assert row.error < 1e-5, f"{case.title}: {row.contender} is off by {row.error}"


@pytest.mark.full
def test_every_contender_of_the_large_layers_is_right():
    """On a GPU only they are part of the suite."""
    on_the_cpu = {case.title for case in select(SETTINGS)}
    for case in masked_linear.large_cases(SETTINGS):
        assert case.title not in on_the_cpu
        for row in run_case(case, SETTINGS):
            assert row.skipped is None and row.dtype in ("bfloat16", "tf32"), f"{case.title}: {row}"
            assert row.error < (1e-2 if row.dtype == "bfloat16" else 1e-3), f"{case.title}: {row}"
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.full
def test_table_entry_prints_and_writes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "bench",
        "--tiny",
        "--suite",
        "nade",
        "--compile-seconds",
        "0",
        "--seconds",
        "0.001",
    ]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "| ar_fast |" in done.stdout and "loop over D" in done.stdout
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert {"commit", "date", "torch", "threads"} <= set(found["environment"])
    assert all(row["median"] > 0 and row["error"] < 1e-5 for row in found["results"])
    assert (tmp_path / "cpu.md").read_text().startswith("# Benchmark")


def test_sizes_that_differ_in_dtype_only_are_lines_of_their_own():
    rows = [
        Row("Sampling", "B 1", "noise", dtype, name, seconds, seconds, seconds, 3, 2.0, error)
        for dtype, scale in (("float32", 2e-3), ("bfloat16", 1e-3))
        for name, seconds, error in (("ar_fast", scale, 1e-7), ("loop", 2 * scale, 2e-7), ("bound", scale / 2, None))
    ]
    table = grid_table(rows)
    assert "float32, bfloat16, noise" in table
    assert "| B 1, float32 | 2 ms (1e-07) | 4 ms (2e-07) | 1 ms | 2.00 |" in table
    assert "| B 1, bfloat16 | 1 ms (1e-07) | 2 ms (2e-07) | 500 µs | 2.00 |" in table
    assert "at 0 of 2 sizes" in table
    assert "| B 1 | 2 ms (1e-07) |" in grid_table(rows[:3])


@pytest.mark.full
def test_a_contender_that_cannot_run_is_reported():
    case = next(case for case in select(SETTINGS, ["nade"]))
    case.contenders = [*case.contenders, "loop, CUDA graph"]
    skipped = [row for row in run_case(case, SETTINGS) if row.skipped]
    if not torch.cuda.is_available():
        assert [row.contender for row in skipped] == ["loop, CUDA graph"]


def test_compile_guard_ends_what_takes_too_long():
    with pytest.raises(peers.CompileTimeout), peers.compile_guard(0.05):
        while True:
            pass


def test_interleave_takes_turns():
    turns = []
    timings = interleave(
        {"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, seconds=0, min_rounds=4, turn_seconds=0
    )
    assert turns[4:] == ["a", "b", "b", "a"] * 2
    assert timings["a"].rounds == 4 and timings["a"].lower <= timings["a"].median <= timings["a"].upper


def test_the_experiments_with_recurrent_networks_run(capsys):
    from bench import recurrent

    assert recurrent.main(["--tiny"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| lstm") == 4 and "no memory" in printed and "L = 4: L to 4 L" in printed
    # Weights small enough, and a state's effect fades; a tanh network of larger ones keeps it.
    sizes = recurrent.Sizes(hidden_features=16, batch=4, lags=(1, 20))
    assert recurrent.gradient_norms("rnn", 1.0, sizes)[1] < 0.01 < recurrent.gradient_norms("rnn", 3.0, sizes)[1]


@pytest.mark.full
def test_the_flows_of_other_libraries_are_timed(tmp_path, capsys):
    for name in ("zuko", "nflows", "normflows", "pyro"):
        pytest.importorskip(name)
    from bench import drop_in

    assert drop_in.main(["--tiny", "--seconds", "0", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    for name in ("zuko MAF", "nflows affine", "normflows affine", "pyro affine"):
        assert f"| {name} |" in printed.out
    assert "fused pass" in printed.err


@pytest.mark.full
def test_our_flows_are_timed_beside_zuko(tmp_path, capsys):
    pytest.importorskip("zuko")
    from bench import flows

    assert flows.main(["--tiny", "--seconds", "0", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| MAF | D 3, (8, 8) x 2 | 2 |" in printed and "| NSF |" in printed


def test_rows_of_sbi_are_put_into_the_table_there_is(tmp_path):
    from bench import sbi
    from bench.tables import write_table

    def row(model: str, variables: str, work: str, commit: str) -> list[str]:
        return [model, variables, work, "2 s", "1 s", "2.00x", commit]

    path = tmp_path / "table.md"
    assert sbi.read_rows(path) == []
    found = []
    for own in (row("maf_rqs", "2", "train(), 9 pairs, 40 epochs", "a"), row("maf", "10", "5 draws, 1 contexts", "b")):
        found = sbi.put(found, own)
    found = sbi.put(found, row("maf", "5", "log_prob, B 20", "c"))
    assert [own[-1] for own in found] == ["c", "b", "a"]
    write_table(tmp_path, "table", "A title", {"commit": "d"}, sbi.HEADER, found, "A note.")
    assert sbi.read_rows(path) == found
    # The same work at another size takes the row's place.
    again = sbi.put(sbi.read_rows(path), row("maf", "10", "1,000 draws, 1 contexts", "e"))
    assert [own[-1] for own in again] == ["c", "e", "a"] and again[1][2] == "1,000 draws, 1 contexts"
    path.write_text(path.read_text().replace("| commit |", "| other |"))
    assert sbi.read_rows(path) == []


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_posteriors_of_sbi_are_timed(tmp_path, capsys):
    for name in ("sbi", "nflows", "zuko"):
        pytest.importorskip(name)
    from bench import sbi

    tiny = ["--tiny", "--seconds", "0", "--limit", "1", "--models", "maf", "--out", str(tmp_path)]
    assert sbi.main([*tiny, "--works", "train"]) == 0
    assert len(sbi.read_rows(tmp_path / "cpu-sbi.md")) == 1
    capsys.readouterr()
    assert sbi.main([*tiny, "--works", "draws", "contexts", "log_prob", "slice"]) == 0
    printed, told = capsys.readouterr()
    # A slow machine makes fewer draws.
    for work in ("draws, one context", " contexts", "log_prob, B 20", "slice sample", "train()"):
        assert work in printed
    assert "measured in" in told
