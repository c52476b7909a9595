"""bench.counts: reading callgrind's dumps, the tolerance, the command; in the full suite the counts themselves."""

# ruff: noqa: E402 (the path to bench/ is set first)

import json
import sys
from pathlib import Path

import pytest

# bench/ is not installed. At the end, so that an installed ar_fast comes before this folder's.
ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from bench import calls, counts

# What callgrind 3.19 writes with --compress-strings=no --compress-pos=no, shortened.
DUMP = """# callgrind format
version: 1
creator: callgrind-3.19.0
cmd:  python -m bench.counted
part: 1

desc: Timerange: Basic block 0 - 731248
desc: Trigger: Client Request: NADE: log_prob + backward

positions: line
events: Ir
summary: 1150

ob=/torch/lib/libtorch_cpu.so
fl=???
fn=at::empty
0 100
cob=/ar_fast/libar_fast_ops.so
cfi=???
cfn=forward
calls=3 0
0 5000

fn=at::add
12 40

ob=/ar_fast/libar_fast_ops.so
fl=nade.cpp
fn=forward
7 900
fi=other.h
8 60
cob=/lib/libc.so.6
cfn=memcpy
calls=1 0
9 50
10

ob=/lib/libc.so.6
fl=???
fn=memcpy
0 50

totals: 1150
"""


def test_each_object_gets_what_it_executed_itself():
    assert counts.parse(DUMP) == {
        "/torch/lib/libtorch_cpu.so": 140,
        "/ar_fast/libar_fast_ops.so": 960,
        "/lib/libc.so.6": 50,
    }
    assert counts.of_objects(counts.parse(DUMP)) == {"library": 960, "total": 1150}
    assert counts.title_of(DUMP) == "NADE: log_prob + backward"
    assert counts.title_of("desc: Trigger: Program termination\n") is None


def test_only_the_library_itself_is_the_library():
    objects = {"/a/libar_fast_ops.so": 3, "/b/_C.cpython-311.so": 4, "/c/libar_fast_ops.so.bak": 5}
    assert counts.of_objects(objects) == {"library": 3, "total": 12}


def test_a_dump_that_does_not_add_up_is_refused():
    # A form of line that the parser does not know must not be lost unseen.
    with pytest.raises(ValueError, match="add up to 1140, its total is 1150"):
        counts.parse(DUMP.replace("7 900", "7 890\n+1 10"))
    with pytest.raises(ValueError, match="its total is None"):
        counts.parse(DUMP.split("totals")[0])


RECORDED = {"a": {"library": 1000, "total": 50_000}, "b": {"library": 10, "total": 200}}


def changed(title: str, part: str, value: int) -> dict:
    return {**RECORDED, title: {**RECORDED[title], part: value}}


@pytest.mark.parametrize(
    ("value", "fails"), [(1000, False), (1020, False), (980, False), (1021, True), (1030, True), (970, True)]
)
def test_a_count_may_be_two_percent_off(value, fails):
    assert bool(counts.differences(RECORDED, changed("a", "library", value))) == fails


def test_a_difference_says_which_count_and_by_how_much():
    assert counts.differences(RECORDED, changed("a", "total", 51_500)) == [
        "a, total: 51,500 instructions, recorded 50,000 (+3.0%)"
    ]
    assert counts.differences(RECORDED, changed("b", "library", 5)) == [
        "b, library: 5 instructions, recorded 10 (-50.0%)"
    ]


def test_calls_that_come_or_go_are_differences():
    assert counts.differences(RECORDED, {"a": RECORDED["a"]}) == ["b: not counted any more"]
    assert counts.differences({"a": RECORDED["a"]}, RECORDED) == ["b: not recorded"]


def test_other_versions_are_a_reason():
    recorded = {"compiler": "GNU 12.2.0", "torch": "2.13.0+cpu"}
    assert counts.changed(recorded, dict(recorded)) is None
    reason = counts.changed(recorded, {"compiler": "GNU 12.2.0", "torch": "2.14.0+cpu"})
    assert reason == "counts.json was recorded with other versions: torch 2.14.0+cpu (recorded: 2.13.0+cpu)"


def test_spread_is_the_largest_over_the_smallest():
    repeats = [{"a": {"library": count, "total": 500}} for count in (100, 101, 104)]
    assert counts.spread(repeats) == {"a": {"library": pytest.approx(0.04), "total": 0.0}}


def test_every_call_is_recorded():
    record = json.loads(counts.RECORD.read_text())
    assert list(record["counts"]) == [call.title for call in calls.select()]
    assert all(0 < parts["library"] <= parts["total"] for parts in record["counts"].values())


def test_titles_differ_and_every_kind_has_its_ops():
    titles = [call.title for call in calls.select()]
    assert len(set(titles)) == len(titles)
    assert [call.title for call in calls.select(["MADE"])] == [
        "MADE: log_prob",
        "MADE: log_prob + backward",
        "MADE: sample",
    ]


@pytest.mark.full
@pytest.mark.parametrize("call", calls.select(), ids=lambda call: call.title)
def test_every_call_runs_again_and_again(call):
    run = call.build(calls.Sizes(2, 3, 8, 4, (6, 5), 8, 6, 9))
    run()
    run()


def test_help_and_wrong_arguments(capsys):
    with pytest.raises(SystemExit, match="0"):
        counts.main(["--help"])
    assert "--update" in capsys.readouterr().out
    for wrong in (["--update", "--suite", "NADE"], ["--repeat", "0"], ["--suite", "nothing"]):
        with pytest.raises(SystemExit, match="2"):
            counts.main(wrong)


@pytest.mark.full
def test_instruction_counts_are_those_recorded():
    if (reason := counts.missing()) is not None:
        pytest.skip(reason)
    record = counts.read()
    if (reason := counts.changed(record["environment"], counts.environment())) is not None:
        pytest.skip(f"{reason}; python -m bench.counts --update records them again")
    measured = counts.measure([call.title for call in calls.select()])
    lines = counts.differences(record["counts"], measured)
    advice = "python -m bench.counts --update records a change that has a reason"
    assert not lines, "\n".join([f"{len(lines)} counts are more than {counts.TOLERANCE:.0%} off; {advice}", *lines])
