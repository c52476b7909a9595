"""bench.compare: its statistics and marks, revisions, workers, and the command on commits that are built already."""

# ruff: noqa: E402 (the path to bench/ is set first)

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# bench/ is not installed. At the end, so that an installed ar_fast comes before this folder's.
ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

import ar_fast
from ar_fast import _library
from bench import compare

in_place = pytest.mark.skipif(
    _library.backend != "compiled" or Path(ar_fast.__file__).resolve().parents[1] != ROOT,
    reason="needs ar_fast compiled in this checkout",
)


def test_ratio_is_the_median_of_the_pairs():
    # The machine became ten times slower in the middle: no pair's ratio shows it.
    pairs = [(1.0, 1.1), (2.0, 2.4), (10.0, 9.0), (20.0, 26.0), (1.0, 1.0)]
    ratio = compare.summarize(pairs)
    assert (ratio.median, ratio.lower, ratio.upper) == pytest.approx((1.1, 1.0, 1.2))
    assert (ratio.first, ratio.second) == (2.0, 2.4)


@pytest.mark.parametrize(
    ("second", "mark"),
    [(1.0, ""), (1.14, ""), (1.16, "slower"), (3.0, "slower"), (0.88, ""), (0.86, "faster"), (0.3, "faster")],
)
def test_only_large_ratios_are_marked(second, mark):
    ratio = compare.summarize([(1.0, second)] * 5)
    assert ratio.mark == mark
    assert compare.row("NADE: sample", ratio).endswith(f"| {second:.3f} | {second:.3f} to {second:.3f} | {mark} |")


class Scripted:
    """A worker whose calls take made-up times."""

    def __init__(self, name, log, seconds):
        self.name, self.log, self.seconds = name, log, seconds

    def ask(self, **request):
        if "prepare" in request:
            return {"seconds": self.seconds} if self.seconds else {"error": "AttributeError: no RNN"}
        self.log.append((self.name, request["repeat"]))
        return {"seconds": self.seconds}


def test_pairs_alternate_and_a_turn_repeats_a_short_call():
    log = []
    workers = [Scripted("a", log, 1e-3), Scripted("b", log, 2e-3)]
    ratio = compare.time_call("NADE: sample", workers, pairs=3)
    assert [name for name, _ in log] == ["a", "b", "b", "a", "a", "b"]
    # 4 ms of the slower one.
    assert {repeat for _, repeat in log} == {2}
    assert ratio.median == pytest.approx(2.0) and ratio.mark == "slower"


@pytest.mark.parametrize(("seconds", "name"), [((0, 1), "first"), ((1, 0), "second")])
def test_a_call_that_one_commit_lacks_is_said_so(seconds, name):
    workers = [Scripted(str(each), [], each) for each in seconds]
    result = compare.time_call("RNN: sample", workers, pairs=3)
    assert result == f"does not run at the {name} commit: AttributeError: no RNN"
    assert result in compare.row("RNN: sample", result)


@pytest.mark.full
@in_place
def test_a_worker_answers():
    with compare.Worker(ROOT, threads=1, small=True) as worker:
        assert worker.about["cpu_threads"] == 1 and worker.about["cpu_isa"] == _library._C.isa()
        assert worker.ask(prepare="MaskedLinear small: forward")["seconds"] > 0
        assert worker.ask(repeat=3)["seconds"] > 0
        assert worker.ask(prepare="nothing") == {"error": "KeyError: 'nothing'"}


@pytest.mark.full
@in_place
def test_a_worker_that_ends_is_an_error(tmp_path):
    # A folder without ar_fast: the one of this checkout must not stand in for it.
    with pytest.raises(RuntimeError, match="a worker ended with status 1"):
        compare.Worker(tmp_path, threads=1, small=True)


@pytest.mark.full
@in_place
def test_command_names_both_commits_and_prints_a_line_for_each_call(capsys, monkeypatch):
    monkeypatch.setattr(compare, "commit", lambda revision: {"old": "1" * 40, "HEAD": "2" * 40}[revision])
    monkeypatch.setattr(compare, "build", lambda sha: ROOT)
    monkeypatch.setattr(compare, "_git", lambda *arguments: f"subject of {arguments[-1][:3]}")
    assert compare.main(["old", "--suite", "MaskedLinear small", "--pairs", "2", "--small"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "first: 111111111111 subject of 111" and lines[2] == "second: 222222222222 subject of 222"
    assert all(f"cpu_isa {_library._C.isa()}, cpu_threads 1" in lines[number] for number in (1, 3))
    assert [line.split(" | ")[0] for line in lines[-2:]] == [
        "| MaskedLinear small: forward",
        "| MaskedLinear small: forward + backward",
    ]


def test_a_revision_that_does_not_exist_is_refused(capsys, monkeypatch, tmp_path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    assert compare.main(["no-such-revision"]) == 2
    assert "REV and REV2 must name commits: git rev-parse" in capsys.readouterr().err


def repository(folder: Path) -> list[str]:
    """A repository of two commits that differ in Python only, and a third with other C++; their names."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(["git", *identity, *arguments], cwd=folder, text=True, capture_output=True, check=True)
        return done.stdout.strip()

    git("init", "--quiet")
    (folder / "csrc").mkdir()
    (folder / "ar_fast").mkdir()
    (folder / "CMakeLists.txt").touch()
    # Stands in for the build: it writes what CMake and setuptools would, and that it ran.
    (folder / "setup.py").write_text(
        "import os, pathlib\n"
        "assert os.environ['AR_FAST_CUDA'] == '0'\n"
        "pathlib.Path('ar_fast/libar_fast_ops.so').write_text(pathlib.Path('csrc/a.cpp').read_text())\n"
        "pathlib.Path('ar_fast/_C.so').touch()\n"
        "pathlib.Path('ran').touch()\n"
        "pathlib.Path('ar_fast/_build.json').write_text(os.environ['RECORD'])\n"
    )
    names = []
    for python, cpp in (("one", "one"), ("two", "one"), ("two", "three")):
        (folder / "ar_fast" / "a.py").write_text(python)
        (folder / "csrc" / "a.cpp").write_text(cpp)
        git("add", ".")
        git("commit", "--quiet", "-m", f"{python}, {cpp}")
        names.append(git("rev-parse", "HEAD"))
    return names


def test_commits_are_built_side_by_side_and_once_for_the_same_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(compare, "BUILDS", tmp_path / "build" / "compare")
    monkeypatch.setenv("RECORD", json.dumps({"torch": torch.__version__}))
    names = repository(tmp_path)
    assert [compare.commit(name) for name in ("HEAD~2", "HEAD~1", "HEAD")] == names
    folders = [compare.build(name) for name in names]
    assert [(folder / "ar_fast" / "a.py").read_text() for folder in folders] == ["one", "two", "two"]
    libraries = [(folder / "ar_fast" / "libar_fast_ops.so").read_text() for folder in folders]
    assert libraries == ["one", "one", "three"]
    assert [(folder / "ran").exists() for folder in folders] == [True, False, True]
    # The second time nothing is built; what another torch was built for is built again.
    for folder in folders:
        (folder / "ran").unlink(missing_ok=True)
    assert [compare.build(name) for name in names] == folders and not any(
        (folder / "ran").exists() for folder in folders
    )
    for folder in folders:
        (folder / "ar_fast" / "_build.json").write_text('{"torch": "1.0"}')
    compare.build(names[2])
    assert [(folder / "ran").exists() for folder in folders] == [False, False, True]


def test_help_and_wrong_arguments(capsys):
    with pytest.raises(SystemExit, match="0"):
        compare.main(["--help"])
    assert "--against" in capsys.readouterr().out
    for wrong in ([], ["HEAD", "--pairs", "1"], ["HEAD", "--threads", "0"], ["HEAD", "--suite", "nothing"]):
        with pytest.raises(SystemExit, match="2"):
            compare.main(wrong)
