"""bench.reference, bench.smoke and bench.clocks, which a GPU run is made of, on the CPU."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("sklearn", reason="needs the bench extra")

sys.path.append(str(Path(__file__).parents[2]))

from bench import clocks, reference, smoke
from bench.prediction.cases import CASES

CPU = torch.device("cpu")


@pytest.mark.full
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_reference_case_runs_with_its_peers(case):
    result = reference.measure(reference.tiny(case), CPU, seconds=0.0)
    names = [row["contender"] for row in result["contenders"]]
    assert names[0] == reference.OURS
    assert len(names) > 1 or case.variables > reference.MOST_GRAPH_STEPS
    for row in result["contenders"]:
        assert "failed" not in row, row
        for timing in (row["warm"], row["flushed"]):
            assert 0 < timing["p10_us"] <= timing["median_us"] <= timing["p90_us"] and timing["calls"] == 5


def test_the_time_of_a_step_is_that_of_its_run_over_the_steps(monkeypatch):
    clock = reference.Clock(CPU)
    monkeypatch.setattr(clock, "once", lambda run, flushed: 3.0)
    assert clock.measure(lambda: None, False, 0.0)["median_us"] == 3e6
    assert clock.measure(reference.Steps(lambda: None, 4), False, 0.0)["median_us"] == 0.75e6


def test_results_are_written_after_every_case(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(reference, "CASES", CASES[:2])
    monkeypatch.setattr(reference, "write", lambda directory, results, where: written.append(len(results)))
    arguments = ["reference", "--device", "cpu", "--tiny", "--seconds", "0", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert reference.main() == 0 and written == [1, 2]


def test_a_contender_that_fails_is_a_row_and_ours_fails_the_run(tmp_path, monkeypatch):
    def contenders(case, device):
        yield reference.OURS, lambda: (_ for _ in ()).throw(RuntimeError("no kernel\nfor this"))

    monkeypatch.setattr(reference, "CASES", CASES[:1])
    monkeypatch.setattr(reference, "contenders", contenders)
    monkeypatch.setattr(sys, "argv", ["reference", "--device", "cpu", "--out", str(tmp_path)])
    assert reference.main() == 1
    (result,) = json.loads((tmp_path / "reference.json").read_text())["results"]
    assert result["contenders"] == [{"contender": reference.OURS, "failed": "RuntimeError: no kernel"}]
    assert "failed: RuntimeError: no kernel" in (tmp_path / "reference.md").read_text()


def test_the_table_has_rates_goals_and_what_slowed_the_gpu(tmp_path):
    timing = {"median_us": 10.0, "p10_us": 9.0, "p90_us": 12.0, "calls": 5}
    row = {"contender": "ar_fast", "warm": timing, "flushed": timing, "bytes_per_s": 2e12, "flop_per_s": 3e13}
    result = {
        "case": CASES[0].name,
        "contenders": [row],
        "before": {"slowed by": []},
        "after": {"slowed by": ["power cap"]},
    }
    reference.write(tmp_path, [result], {"device": "a GPU"})
    text = (tmp_path / "reference.md").read_text()
    assert "| 10 (9 to 12) | 10 (9 to 12) | 2000 | 30 | 26 | 55 |" in text
    assert "- " + CASES[0].name + ", after: power cap" in text


def test_work_of_known_cases():
    by_name = {case.name: reference.work(case) for case in CASES if case.kind}
    dense = by_name["nade forward 784/500/128 dense float32"]
    assert dense.flops == 128 * 784 * 500 * 4 and dense.bytes == 4 * (2 * 784 * 500 + 128 * 784)
    layer = by_name["masked_linear 8192x8192 B4096 bfloat16"]
    assert layer.flops == 4096 * 8192 * 8192 and layer.bytes == 2 * (8192 * 8192 / 2 + 2 * 4096 * 8192)


@pytest.mark.parametrize("newer", [True, False])
def test_clocks_are_read_from_nvidia_smi(tmp_path, monkeypatch, newer):
    name = "clocks_event_reasons" if newer else "clocks_throttle_reasons"
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        f'#!/bin/sh\ncase "$*" in *{name}*) echo "1980, 2619, 40, 120.5, 0x0000000000000044";; '
        '*) echo "Field is not a valid field" >&2; exit 2;; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = clocks.state()
    assert found["clocks.sm"] == "1980" and found["slowed by"] == ["power cap", "hardware thermal slowdown"]


def test_clocks_that_cannot_be_read_are_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "FileNotFoundError" in clocks.state()["unknown"]
    assert clocks.reasons("[Not Supported]") == ["unknown: [Not Supported]"]


class Ops(TorchDispatchMode):
    """The ops that were called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "ar_fast":
            self.names.add(function._schema.name)
        return function(*args, **(kwargs or {}))


# Ops that no case runs on the CPU.
ELSEWHERE = {
    "ar_fast::fvsbn_sample",  # on CUDA alone; on the CPU FVSBN draws through masked_mlp_sample
    "ar_fast::nade_log_prob",  # below autograd it is nade_log_prob_forward
}


def test_the_smoke_runs_every_op():
    schemas = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("ar_fast::")}
    with Ops() as ops:
        for case in smoke.cases():
            if case.dtype in (torch.float32, torch.bfloat16):
                case.run(CPU)
    assert len(schemas) > 10
    assert ops.names == schemas - ELSEWHERE


def test_the_smoke_agrees_with_itself_and_sees_a_difference(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["smoke", "--device", "cpu", "--only", "NADE*"])
    assert smoke.main() == 0
    right = smoke._log_prob

    def wrong(kind, device):
        found = right(kind, device)
        calls.append(kind)
        return [found[0] + 0.1, *found[1:]] if len(calls) == 1 else found

    calls = []
    monkeypatch.setattr(smoke, "_log_prob", wrong)
    monkeypatch.setattr(sys, "argv", ["smoke", "--device", "cpu", "--only", "NADE: log_prob*"])
    assert smoke.main() == 1
    assert "more than 2e-04" in capsys.readouterr().out
    assert smoke.difference(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")


def test_the_smoke_says_what_it_cannot_do(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["smoke", "--device", "cpu", "--only", "nothing"])
    assert smoke.main() == 2 and "no case is named nothing" in capsys.readouterr().err
    if not torch.cuda.is_available():
        monkeypatch.setattr(sys, "argv", ["smoke"])
        assert smoke.main() == 2 and "torch sees no CUDA device" in capsys.readouterr().err
