"""The command line: every command on small data of every kind, in this process."""

# ruff: noqa: E402 (what is imported later needs the extra)

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from grids import skip_module_without

skip_module_without("cli", "click", "PIL", "matplotlib", "pandas")

from command_line import files, invoke, refused, run

from ar_fast import flows, models
from ar_fast.cli import runs, scoring, sources
from ar_fast.cli.values import Numbers, Table
from ar_fast.tasks.checkpoints import Checkpoint
from ar_fast.tasks.completion import complete

FIXED_SEED = 0


def bits(count: int, *shape: int) -> np.ndarray:
    return (np.random.default_rng(0).random((count, *shape)) < 0.3).astype(np.uint8)


def people(count: int = 120):
    import pandas

    random = np.random.default_rng(1)
    return pandas.DataFrame(
        {
            "age": random.normal(40, 10, count).round(1),
            "children": random.integers(0, 4, count),
            "job": random.choice(["baker", "clerk", "NA "], count),
            "smoker": random.random(count) < 0.3,
            "income": random.lognormal(8, 1, count),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Data of every kind."""
    from PIL import Image

    base = tmp_path_factory.mktemp("data")
    np.savez(base / "bits.npz", x=bits(90, 6, 5))
    np.save(base / "grey.npy", np.random.default_rng(0).integers(0, 256, (40, 6, 5)).astype(np.uint8))
    np.savez(base / "reals.npz", x=np.random.default_rng(0).normal(3, 20, (60, 4)))
    people().to_csv(base / "people.csv", index=False)
    (base / "text.txt").write_text("caf\u00e9 abd. caf\u00e9\n" * 200, encoding="utf-8")
    grey = np.load(base / "grey.npy")
    idx = b"\0\0\x08\x03" + struct.pack(">III", *grey.shape) + grey.tobytes()
    (base / "grey-idx3-ubyte").write_bytes(idx)
    (base / "grey-idx3-ubyte.gz").write_bytes(gzip.compress(idx))
    (base / "images").mkdir()
    for index, image in enumerate(grey):
        Image.fromarray(image).save(base / "images" / f"{index:02}.png")
    return base


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    """Small runs, one of each kind of data."""
    small = ("--epochs", 2, "--batch-size", 20)
    run("train", "nade", "--data", folder / "bits.npz", "--hidden", 4, *small, "--out", folder / "bits")
    run("train", "deep-nade", "--data", folder / "people.csv", "--hidden", "8,8", *small, "--out", folder / "people")
    run("train", "offset-nade", "--data", folder / "grey.npy", "--components", 2, "--hidden", 4, "--window", "2,2",
        *small, "--out", folder / "grey")  # fmt: skip
    run("train", "char-rnn", "--data", folder / "text.txt", "--hidden", 8, "--epochs", 2, "--batch-size", 4,
        "--chunk", 16, "--learning-rate", 0.05, "--out", folder / "text")  # fmt: skip
    return folder


def test_a_run_folder_has_everything(trained):
    assert sorted(path.name for path in (trained / "bits").iterdir()) == [
        "config.json", "held_out.npy", "learning_curve.png", "metrics.jsonl", "model", "samples.png",
    ]  # fmt: skip
    config = json.loads((trained / "bits" / "config.json").read_text())
    assert config["model"] == {
        "name": "nade",
        "options": {"order": "raster", "components": 10, "hidden": "4", "activation": "sigmoid"},
    }
    assert (config["seed"], config["settings"]["epochs"], config["dtype"]) == (0, 2, "float32")
    lines = [json.loads(line) for line in (trained / "bits" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("epoch") for line in lines] == [1, 2, None]
    model = models.load(trained / "bits" / "model")
    parts = runs.encoded(sources.read(str(trained / "bits.npz")), Numbers((6, 5), "binary"), 0)
    assert [len(parts[name]) for name in ("train", "validation", "test", "all")] == [72, 9, 9, 90]
    nats = model.log_prob(parts["test"]).double()
    assert lines[2]["test"]["nats"] == pytest.approx(nats.mean().item(), abs=1e-6)
    held_out = np.load(trained / "bits" / "held_out.npy")
    np.testing.assert_allclose(held_out, model.log_prob(parts["validation"]).detach(), atol=1e-6)


def test_evaluate_prints_and_writes_the_same_figures(trained, tmp_path):
    last = json.loads((trained / "bits" / "metrics.jsonl").read_text().splitlines()[-1])["test"]
    printed = run("evaluate", trained / "bits", "--data", trained / "bits.npz", "--split", "test")
    assert printed.startswith(f"test: {last['nats']:.2f} ± {last['standard_error']:.2f} nats per event")
    run("evaluate", trained / "bits", "--split", "all", "--out", tmp_path / "all.json")
    found = json.loads((tmp_path / "all.json").read_text())
    x = torch.from_numpy(np.load(trained / "bits.npz")["x"])
    expected = models.load(trained / "bits" / "model").log_prob(x).double().mean().item()
    assert found["events"] == 90 and found["nats"] == pytest.approx(expected, abs=1e-6)
    # The model's own folder works too, for data as it takes them.
    assert "all: " in run("evaluate", trained / "bits" / "model", "--data", trained / "bits.npz", "--split", "all")
    assert "nats per token" in run("evaluate", trained / "text")


def test_samples_are_the_models_in_every_format(trained, tmp_path):
    from PIL import Image

    expected = models.load(trained / "bits" / "model").sample(10, seed=3).numpy()
    draw = ("sample", trained / "bits", "-n", 10, "--seed", 3)
    run(*draw, "--out", tmp_path / "s.npz")
    run(*draw, "--out", tmp_path / "s.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "s.npz")["samples"], expected)
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), expected)
    lines = run(*draw).splitlines()
    assert lines[:6] == ["".join(".#"[int(bit)] for bit in row) for row in expected[0]] and lines[6] == ""
    run(*draw, "--out", tmp_path / "s.txt")
    assert (tmp_path / "s.txt").read_text().splitlines() == lines
    run("sample", trained / "bits", "--seed", 3, "--out", tmp_path / "one.png")
    ink = np.asarray(Image.open(tmp_path / "one.png")) < 128
    np.testing.assert_array_equal(ink, expected[0] == 1)
    run("sample", trained / "grey", "--size", "9x7", "--seed", 3, "--out", tmp_path / "grey.png")
    larger = models.load(trained / "grey" / "model").resized((9, 7)).sample(1, seed=3)[0]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grey.png")), larger.numpy())


def test_frames_show_the_pixels_as_they_are_drawn(trained, tmp_path):
    from PIL import Image

    run("sample", trained / "bits", "-n", 1, "--seed", 3, "--frames", tmp_path / "f.gif")
    model = models.load(trained / "bits" / "model")
    drawn = model.sample(1, seed=3)
    probability = model(drawn).sigmoid().detach().reshape(6, 5).numpy()
    with Image.open(tmp_path / "f.gif") as film:
        # A frame for each of 30 pixels; the last one stays for a while.
        assert film.n_frames >= 30
        film.seek(7)
        left, right = np.split(np.asarray(film.convert("L")).astype(float), 2, axis=1)
    zoom, gap = 56 // 6, 2 * (56 // 6)
    inside = [part[gap + zoom // 2 : -gap : zoom, gap + zoom // 2 : -gap : zoom] for part in (left, right)]
    known = np.arange(30).reshape(6, 5) < 8
    for shown, value in zip(inside, (drawn[0].numpy(), probability), strict=True):
        np.testing.assert_allclose(shown, np.where(known, 255 - 225 * value, 238), atol=2)


def test_a_table_comes_back_as_a_table(trained, tmp_path):
    import pandas

    run("sample", trained / "people", "-n", 7, "--out", tmp_path / "s.csv")
    drawn = pandas.read_csv(tmp_path / "s.csv", keep_default_na=False)
    assert list(drawn) == list(people()) and len(drawn) == 7
    assert set(drawn["job"]) <= {"baker", "clerk", "NA "} and set(drawn["children"]) <= {0, 1, 2, 3}
    kinds = Table.of(sources.read(str(trained / "people.csv"))).columns
    assert [column["categories"] for column in kinds] == [
        None, [0, 1, 2, 3], ["NA ", "baker", "clerk"], [False, True], None,
    ]  # fmt: skip
    # What is empty is drawn, in any column; the rest comes back.
    missing = people(4)
    missing["job"], missing["income"] = ["baker", None, None, "clerk"], [1.5, 2.5, None, None]
    missing.to_csv(tmp_path / "missing.csv", index=False)
    run("complete", trained / "people", tmp_path / "missing.csv", "-n", 2, "--out", tmp_path / "filled.csv")
    filled = pandas.read_csv(tmp_path / "filled.csv")
    assert len(filled) == 8 and not filled.isna().any().any()
    assert filled["job"][[0, 1, 6, 7]].tolist() == ["baker", "baker", "clerk", "clerk"]
    assert filled["income"][:4].tolist() == [1.5, 1.5, 2.5, 2.5]
    np.testing.assert_allclose(filled["age"][::2], people(4)["age"], rtol=1e-6)


def test_images_are_completed(trained, tmp_path):
    from PIL import Image

    run("complete", trained / "grey", trained / "images" / "03.png", "--seed", 5, "--out", tmp_path / "c.png")
    grey = np.load(trained / "grey.npy")[3]
    drawn = np.asarray(Image.open(tmp_path / "c.png"))
    np.testing.assert_array_equal(drawn[:3], grey[:3])
    mask = np.zeros((6, 5), np.uint8)
    mask[4:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    run("complete", trained / "grey", trained / "images" / "03.png", "--mask", tmp_path / "mask.png", "--seed", 5,
        "-n", 3, "--out", tmp_path / "c.npz")  # fmt: skip
    known = torch.from_numpy(mask == 0)
    model = models.load(trained / "grey" / "model")
    expected = model.sample((3, 1), given=torch.from_numpy(grey).long(), known=known, seed=5)[:, 0]
    np.testing.assert_array_equal(np.load(tmp_path / "c.npz")["samples"], expected.numpy())


def test_a_hole_in_an_image_of_another_size(trained, tmp_path):
    from PIL import Image

    photo = np.random.default_rng(0).integers(0, 256, (14, 12)).astype(np.uint8)
    mask = np.zeros((14, 12), np.uint8)
    mask[4:7, 5:9] = 255
    for name, pixels in (("photo", photo), ("mask", mask)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    given = ("complete", trained / "grey", tmp_path / "photo.png", "--mask", tmp_path / "mask.png", "--particles", 40)
    result = invoke(*given, "--seed", 3, "--out", tmp_path / "c.png")
    assert result.exit_code == 0, (result.stderr, result.exception)
    drawn = np.asarray(Image.open(tmp_path / "c.png"))
    np.testing.assert_array_equal(drawn[mask == 0], photo[mask == 0])
    model = models.load(trained / "grey" / "model").resized((14, 12))
    options = {"particles": 40, "seed": 3}
    found = complete(model, torch.from_numpy(photo), torch.from_numpy(mask == 0), 1, **options)
    np.testing.assert_array_equal(drawn, found.samples[0].numpy())
    assert "40 particles" in result.stderr
    assert f"effective sample size at least {found.effective_sample_sizes.min():.0f}" in result.stderr
    assert f"log-probability of what is kept: {found.log_prob_known:.2f} nats, estimated" in result.stderr
    # Each event of a table has a hole of its own.
    run("train", "nade", "--data", trained / "people.csv", "--hidden", 4, "--epochs", 1, "--out", tmp_path / "people")
    missing = people(4)
    missing["age"], missing["job"] = [None, 1.5, 2.5, 3.5], ["baker", None, None, "clerk"]
    missing.to_csv(tmp_path / "missing.csv", index=False)
    run("complete", tmp_path / "people", tmp_path / "missing.csv", "-n", 2, "--out", tmp_path / "filled.csv")
    import pandas

    filled = pandas.read_csv(tmp_path / "filled.csv")
    assert len(filled) == 8 and not filled.isna().any().any() and filled["age"][2:].tolist()[::2] == [1.5, 2.5, 3.5]
    np.testing.assert_allclose(filled["income"][::2], people(4)["income"], rtol=1e-6)


def test_anomalies_are_the_unlikely_ones(trained, tmp_path):
    x = np.concatenate([bits(89, 6, 5), np.ones((1, 6, 5), np.uint8)])
    np.savez(tmp_path / "x.npz", x=x)
    options = ("--data", tmp_path / "x.npz", "--false-alarms", 0.1, "--per-variable")
    run("anomaly", trained / "bits", *options, "--out", tmp_path / "scores.csv")
    run("anomaly", trained / "bits", *options, "--out", tmp_path / "scores.npz")
    rows = [line.split(",") for line in (tmp_path / "scores.csv").read_text().splitlines()]
    assert rows[0][:4] == ["index", "nats", "p_value", "anomaly"] and len(rows) == 91
    scores = np.array(rows[1:], dtype=float)
    model = models.load(trained / "bits" / "model")
    terms = model.log_prob(torch.from_numpy(x), per_variable=True).double()
    np.testing.assert_allclose(scores[:, 1], terms.flatten(1).sum(1).detach(), atol=1e-5)
    np.testing.assert_allclose(-scores[:, 4:], terms.flatten(1).detach(), atol=1e-5)
    held_out = np.load(trained / "bits" / "held_out.npy")
    expected = [(1 + (held_out <= nats).sum()) / (1 + len(held_out)) for nats in scores[:, 1]]
    np.testing.assert_allclose(scores[:, 2], expected)
    assert scores[89, 3] == 1 and (scores[:, 3] == (scores[:, 2] <= 0.1)).all()
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npz")["nats"], scores[:, 1])


@pytest.mark.parametrize("ending", ["csv", "npz"])
def test_a_file_is_scored_in_blocks(trained, tmp_path, monkeypatch, ending):
    x = bits(1000, 6, 5)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    score = ("anomaly", trained / "bits", "--per-variable", "--data")
    run(*score, tmp_path / "x.npz", "--out", tmp_path / f"whole.{ending}")
    seen, written, encode = [], [], Numbers.encode

    def recorded(values, events, **options):
        assert not isinstance(events, np.memmap)
        seen.append(len(events))
        written.append((tmp_path / f".blocks.tmp.{ending}").exists())
        return encode(values, events, **options)

    monkeypatch.setattr(Numbers, "encode", recorded)
    monkeypatch.setattr(scoring, "BLOCK_ELEMENTS", 64 * 30)
    run(*score, tmp_path / "x.npy", "--out", tmp_path / f"blocks.{ending}")
    # No more than a block is ever in memory, and the file of the scores is there before the second one.
    assert seen == [64] * 15 + [40] and (ending == "npz" or all(written[1:]))
    if ending == "csv":
        tables = [np.loadtxt(tmp_path / f"{name}.csv", delimiter=",", skiprows=1) for name in ("blocks", "whole")]
        np.testing.assert_allclose(*tables, atol=1e-5)
        return
    blocks, whole = (np.load(tmp_path / f"{name}.npz") for name in ("blocks", "whole"))
    assert blocks.files == whole.files and blocks["index"].dtype == blocks["anomaly"].dtype == np.int64
    for name in whole.files:
        np.testing.assert_allclose(blocks[name], whole[name], atol=1e-5)


def test_an_error_in_a_later_block_names_the_event_and_leaves_nothing(trained, tmp_path, monkeypatch):
    x = bits(90, 6, 5)
    x[70, 2, 3] = 7
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(scoring, "BLOCK_ELEMENTS", 20 * 30)
    message = refused("anomaly", trained / "bits", "--data", tmp_path / "x.npy", "--out", tmp_path / "s.csv")
    assert "got 7 in event 70" in message and files(tmp_path) == {str(tmp_path / "x.npy")}


def test_lines_of_a_text_are_scored(trained, tmp_path):
    lines = ["caf\u00e9 abd. caf\u00e9"] * 5 + ["", "XQZ@"]
    (tmp_path / "t.txt").write_text("\n".join(lines), encoding="utf-8")
    given = ("--data", tmp_path / "t.txt", "--false-alarms", 0.1, "--out", tmp_path / "s.npz")
    assert run("anomaly", trained / "text", *given).startswith("1 anomalies in 6 lines")
    found = np.load(tmp_path / "s.npz")
    model = models.load(trained / "text" / "model")
    expected = [model.log_prob(model.encode(line)).item() / len(line) for line in lines if line]
    np.testing.assert_allclose(found["nats_per_character"], expected, atol=1e-5)
    assert found["index"].tolist() == [0, 1, 2, 3, 4, 6] and found["anomaly"].tolist() == [0, 0, 0, 0, 0, 1]


def test_generate_goes_on_from_its_state(trained, tmp_path):
    def write(name: str, prompt: str, length: int, *options: object) -> str:
        out = tmp_path / name
        printed = run("generate", trained / "text", "--prompt", prompt, "--length", length, "--out", out, *options)
        assert printed == "" or "--stream" in options
        return out.read_bytes().decode()

    text = write("whole.txt", "caf", 60)
    parts = [("caf", 1), ("", 1), ("", 58)]
    state = ("--state", tmp_path / "state.safetensors", "--stream")
    joined = "".join(write(f"{index}.txt", *part, *state) for index, part in enumerate(parts))
    # A character that is not complete at the end waits for the next call.
    assert text.startswith(joined) and len(text) - len(joined) <= 1 and text.startswith("caf")


def test_every_kind_of_file_is_read(folder, tmp_path):
    grey = np.load(folder / "grey.npy")
    for name in ("grey-idx3-ubyte", "grey-idx3-ubyte.gz", "images"):
        np.testing.assert_array_equal(sources.read(str(folder / name)).parts["all"], grey)
    parts = {name: bits(5, 3) for name in ("train_data", "valid_data", "test_data")}
    np.savez(tmp_path / "split.npz", labels=np.arange(3), **parts)
    assert list(sources.read(str(tmp_path / "split.npz")).parts) == ["train", "validation", "test"]


def test_parquet(folder, tmp_path):
    pytest.importorskip("pyarrow", reason="needs the cli extra")
    people().to_parquet(tmp_path / "people.parquet")
    own, csv = (sources.read(str(path)).parts["all"] for path in (tmp_path / "people.parquet", folder / "people.csv"))
    assert own.equals(csv)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "people.parquet").read_bytes()[:99])
    assert "must be a Parquet file" in refused(
        "train", "nade", "--data", tmp_path / "cut.parquet", "--out", tmp_path / "x"
    )


def test_values_follow_from_what_the_numbers_are(folder):
    def found(array, values="auto"):
        made = Numbers.of(sources.Source("array", "x", {"all": array}), None, values)
        return made.values, made.levels, made.threshold

    assert found(bits(9, 4)) == ("binary", 0, None)
    assert found(bits(9, 4) * 3.0) == ("levels", 4, None)
    assert found(np.load(folder / "grey.npy")) == ("levels", 256, None)
    assert found(np.load(folder / "reals.npz")["x"]) == ("reals", 0, None)
    assert found(bits(9, 4) * 6, "binary") == ("binary", 0, 3.0)
    assert found(bits(9, 4) * 6, "categories") == ("categories", 7, None)


def test_an_offset_nade_of_several_layers(folder, tmp_path):
    run("train", "offset-nade", "--data", folder / "grey.npy", "--hidden", "4,3,2", "--window", "1,1", "--epochs", 1,
        "--components", 2, "--out", tmp_path / "run")  # fmt: skip
    model = models.load(tmp_path / "run" / "model")
    assert model.hidden_features == [4, 3, 2] and [layer.out_features for layer in model.layers] == [3, 2]
    run("sample", tmp_path / "run", "-n", 2, "--size", "7x9", "--out", tmp_path / "s.npy")
    assert np.load(tmp_path / "s.npy").shape == (2, 7, 9)


@pytest.mark.full
@pytest.mark.parametrize("name", ["fvsbn", "armlp", "nade", "rnade", "deep-nade", "made", "rnn", "maf", "iaf"])
def test_every_model_by_its_name(folder, tmp_path, name):
    out, data = tmp_path / "run", folder / "reals.npz"
    options = {"rnn": ["--cell", "lstm", "--layers", 2, "--dropout", 0.1], "made": ["--direct", "--hidden", "16,16"]}
    run("train", name, "--data", data, *options.get(name, []), "--epochs", 2, "--out", out, "--seed", 4)
    figures = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["test"]
    x = runs.encoded(
        sources.read(str(data)), runs.from_config(json.loads((out / "config.json").read_text())["values"]), 4
    )
    model = (flows if name in ("maf", "iaf") else models).load(out / "model").eval()
    nats = model.log_prob(runs.on_model(x["test"], model)).mean().item()
    if name in ("maf", "iaf"):
        nats -= np.log(np.load(data)["x"][np.random.default_rng(4).permutation(60)[:48]].std(0)).sum()
    assert figures["nats"] == pytest.approx(nats, abs=1e-4)
    # The scale is 20: standard normal densities would be far off.
    assert figures["nats"] > 4 * (-np.log(20) - 1.42) - 12
    assert len(run("sample", out, "-n", 4).splitlines()) == 4


def test_interrupted_training_goes_on(folder, tmp_path, monkeypatch):
    options = ("--data", folder / "bits.npz", "--hidden", 4, "--epochs", 3, "--batch-size", 20, "--shift", 1)
    run("train", "nade", *options, "--out", tmp_path / "calm")
    due, asked = Checkpoint.due, []

    def interrupted(checkpoint):
        asked.append(checkpoint)
        checkpoint.stop = len(asked) == 2
        return checkpoint.stop

    monkeypatch.setattr(Checkpoint, "due", property(interrupted))
    stopped = invoke("train", "nade", *options, "--out", tmp_path / "stopped")
    assert stopped.exit_code == 130
    assert stopped.stderr.strip().endswith(f"ar-fast train --resume {tmp_path / 'stopped'} goes on from here")
    assert "its training has not ended" in refused("sample", tmp_path / "stopped")
    monkeypatch.setattr(Checkpoint, "due", due)
    run("train", "--resume", tmp_path / "stopped")
    own, expected = (tmp_path / name / "model" / "model.safetensors" for name in ("stopped", "calm"))
    assert own.read_bytes() == expected.read_bytes()
    assert not (tmp_path / "stopped" / "checkpoint.safetensors").exists()
    assert "is complete" in run("train", "--resume", tmp_path / "stopped")


def test_other_data_do_not_go_on(folder, tmp_path):
    shutil.copy(folder / "bits.npz", tmp_path / "x.npz")
    run("train", "nade", "--data", tmp_path / "x.npz", "--hidden", 4, "--epochs", 1, "--out", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    np.savez(tmp_path / "x.npz", x=1 - bits(90, 6, 5))
    assert "must hold what the run was started with" in refused("train", "--resume", tmp_path / "run")


@pytest.mark.full
def test_killed_fifty_times_it_ends_as_if_it_had_never_stopped(tmp_path):
    script = Path(__file__).parents[1] / "cli_kills.py"
    seed = os.environ["AR_FAST_TEST_SEED"]
    done = subprocess.run(
        [sys.executable, script, tmp_path, "50", seed],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["kills after progress"] >= 10


@pytest.mark.full
def test_importing_the_package_imports_no_extra():
    code = "import sys, ar_fast; print({'click', 'PIL', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Bad input: one line on standard error, an exit status, no traceback, nothing half-written.


@pytest.fixture(scope="module")
def bad(trained, tmp_path_factory) -> Path:
    """A folder with bad files; no test adds one."""
    from PIL import Image

    tmp_path = tmp_path_factory.mktemp("bad")
    (tmp_path / "corrupt.npz").write_bytes((trained / "bits.npz").read_bytes()[:80])
    (tmp_path / "corrupt.png").write_bytes((trained / "images" / "00.png").read_bytes()[:40])
    (tmp_path / "cut-idx3-ubyte").write_bytes((trained / "grey-idx3-ubyte").read_bytes()[:-1])
    (tmp_path / "cut.gz").write_bytes((trained / "grey-idx3-ubyte.gz").read_bytes()[:-20])
    (tmp_path / "binary.bin").write_bytes(bytes(range(256)))
    (tmp_path / "corrupt.csv").write_text("a,b\n1,2\n1,2,3,4\n")
    (tmp_path / "empty.csv").write_text("")
    np.save(tmp_path / "nan.npy", np.array([[1.5, np.nan]] * 9))
    np.save(tmp_path / "objects.npy", np.array([[{}]] * 9, dtype=object), allow_pickle=True)
    np.save(tmp_path / "two.npy", bits(2, 4))
    np.savez(tmp_path / "small.npz", x=bits(9, 4, 4))
    np.savez(tmp_path / "threes.npz", x=3 * bits(90, 6, 5))
    table = people()
    table.loc[3, "income"] = np.nan
    table.to_csv(tmp_path / "nan.csv", index=False)
    table = people()
    table.loc[3, "job"] = "diver"
    table.to_csv(tmp_path / "diver.csv", index=False)
    people().drop(columns="job").to_csv(tmp_path / "short.csv", index=False)
    (tmp_path / "sizes").mkdir()
    for index, size in enumerate([(5, 6), (5, 6), (4, 6)]):
        Image.new("L", size).save(tmp_path / "sizes" / f"{index}.png")
    (tmp_path / "none").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"format": "another"}')
    shutil.copytree(trained / "bits", tmp_path / "mixed")
    shutil.copy(trained / "grey" / "model" / "model.safetensors", tmp_path / "mixed" / "model" / "model.safetensors")
    shutil.copytree(trained / "bits", tmp_path / "torn")
    (tmp_path / "torn" / "model" / "model.safetensors").write_bytes(b"torn")
    return tmp_path


BAD = {
    # Arguments, where {t} is the folder of the trained runs and {b} that of the bad files; and what the line says.
    "missing file": ("train nade --data {b}/no.npz --out {b}/run", "no.npz"),
    "corrupt npz": ("train nade --data {b}/corrupt.npz --out {b}/run", "must be an .npz file of plain arrays"),
    "corrupt image": ("complete {t}/grey {b}/corrupt.png --out {b}/c.png", "must be an image"),
    "corrupt IDX": ("train nade --data {b}/cut-idx3-ubyte --out {b}/run", "must hold 1200 bytes after an IDX header"),
    "corrupt gzip": ("train nade --data {b}/cut.gz --out {b}/run", "must be a whole gzip file"),
    "unknown kind of file": ("train nade --data {b}/binary.bin --out {b}/run", "it is no text"),
    "corrupt table": ("train nade --data {b}/corrupt.csv --out {b}/run", "must be a table"),
    "empty table": ("train nade --data {b}/empty.csv --out {b}/run", "must be a table"),
    "NaN in an array": ("train nade --data {b}/nan.npy --out {b}/run", "numbers must be finite, got nan in event 0"),
    "NaN in a table": ("train nade --data {b}/nan.csv --out {b}/run", "NaN in column 'income', the first in row 3"),
    "NaN in a scored table": ("anomaly {t}/people --data {b}/nan.csv --out {b}/s.csv", "NaN in column 'income'"),
    "pickled objects": ("train nade --data {b}/objects.npy --out {b}/run", "must be an .npy file of plain numbers"),
    "too few events": ("train nade --data {b}/two.npy --out {b}/run", "every part must have events, at least 3"),
    "images of two sizes": ("train nade --data {b}/sizes --out {b}/run", "images must be of one size, 6 x 5 as 0.png"),
    "folder without images": ("train nade --data {b}/none --out {b}/run", "must hold images"),
    "images of another size": ("evaluate {t}/bits --data {b}/small.npz", "must have shape (6, 5)"),
    "image of another size": ("complete {t}/grey {b}/sizes --out {b}/c.png", "must be of one size"),
    "values that the model does not know": ("evaluate {t}/bits --data {b}/threes.npz", "whole numbers in 0 ... 1"),
    "unknown category": ("evaluate {t}/people --data {b}/diver.csv", "got 'diver' in row 3"),
    "missing column": ("evaluate {t}/people --data {b}/short.csv", "got none named 'job'"),
    "table for a model of images": ("evaluate {t}/bits --data {t}/people.csv", "got the table people.csv"),
    "unknown model": ("train gan --data {t}/bits.npz --out {b}/run", "MODEL: must be one of fvsbn, armlp"),
    "text for a model of events": ("train nade --data {t}/text.txt --out {b}/run", "char-rnn is for texts"),
    "option of another model": ("train fvsbn --hidden 3 --data {t}/bits.npz --out {b}/run", "fvsbn has no such option"),
    "no number": ("train nade --hidden many --data {t}/bits.npz --out {b}/run", "--hidden: must be positive whole"),
    "two layers": ("train nade --hidden 3,3 --data {t}/bits.npz --out {b}/run", "nade has one hidden layer"),
    "unknown activation": ("train nade --activation no --data {t}/bits.npz --out {b}/run", "activation must be one of"),
    "levels for a flow": ("train maf --data {t}/people.csv --out {b}/run", "maf is for reals only"),
    "no epochs": ("train nade --epochs 0 --data {t}/bits.npz --out {b}/run", "--epochs"),
    "too large a batch of text": ("train char-rnn --batch-size 9999 --data {t}/text.txt --out {b}/run", "a token for"),
    "a run is there": ("train nade --data {t}/bits.npz --out {t}/bits", "must be a new or empty folder"),
    "nothing to resume": ("train --resume {b}/none", "with a config.json"),
    "resume with options": ("train --resume {t}/bits --epochs 3", "got 'epochs'"),
    "no such run": ("sample {b}/no-such-run", "which is no folder"),
    "folder of something else": ("sample {b}/other", "config.json is that of something else"),
    "weights of another model": ("sample {b}/mixed --out {b}/s.npz", "load: in_weight must be torch.float32 of"),
    "torn weights": ("sample {b}/torn --out {b}/s.npz", "must be a whole safetensors file"),
    "text from a model of images": ("generate {t}/bits", "generate is for texts"),
    "events from a model of texts": ("sample {t}/text", "sample is for events"),
    "unknown ending": ("sample {t}/bits --out {b}/s.gif", "must end in one of .npz"),
    "a picture of a table": ("sample {t}/people --out {b}/s.png", "must end in one of .csv"),
    "frames of a table": ("sample {t}/people --frames {b}/s.gif", "must be of images"),
    "no folder to write to": ("sample {t}/bits --out {b}/no/s.npz", "No such file or directory"),
    "a file where a folder must be": ("sample {t}/bits --out {b}/file/s.npz", "Not a directory"),
    "a run in a file": ("train nade --data {t}/bits.npz --out {b}/file/run", "Not a directory"),
    "temperature of a hole": ("complete {t}/bits {t}/bits.npz --keep bottom --temperature 2", "must be 1 where"),
    "mask of another size": ("complete {t}/grey {t}/images --mask {b}/sizes/2.png", "must be of the size"),
    "state of something else": ("generate {t}/text --state {b}/mixed/model/model.safetensors", "must be a state of"),
    "unknown device": ("sample {t}/bits --device tpu", "--device: must be cpu, cuda"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(bad, trained, name):
    line, says = BAD[name]
    before = files(bad) | files(trained)
    message = refused(*line.format(t=trained, b=bad).split(" "))
    assert says in message
    assert files(bad) | files(trained) == before


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
def test_no_permission_to_write(trained):
    # Not even root may write there.
    assert "/proc" in refused("sample", trained / "bits", "--out", "/proc/s.npz")
    assert "/proc" in refused("train", "nade", "--data", trained / "bits.npz", "--out", "/proc/run")


def test_a_full_disk(trained, tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    np.savez(tmp_path / "bits.npz", x=bits(90, 6, 5))
    (tmp_path / "s.npy").write_bytes(b"what was there")
    kept = files(tmp_path)
    try:
        # No file may become longer: writing fails as on a disk that is full.
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
        sampled = refused("sample", trained / "bits", "-n", 1000, "--out", tmp_path / "s.npy")
        kept_after = files(tmp_path)
        train = refused("train", "nade", "--data", tmp_path / "bits.npz", "--epochs", 1, "--out", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "s.npy could not be written: " in sampled and kept_after == kept
    assert (tmp_path / "s.npy").read_bytes() == b"what was there"
    assert "checkpoint" in train and "could not be written" in train
    assert files(tmp_path / "run") == {str(tmp_path / "run" / name) for name in ("config.json", "metrics.jsonl")}
    # With room on the disk it goes on.
    run("train", "--resume", tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_missing_package_is_named(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert "pandas" in refused("evaluate", trained / "people")
