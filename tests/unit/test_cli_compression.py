"""ar-fast compress and decompress: files of every kind come back, and errors are one line."""

# ruff: noqa: E402 (what is imported later needs the extra)

from pathlib import Path

import numpy as np
import pytest
from grids import skip_module_without

skip_module_without("cli", "click", "PIL", "matplotlib", "pandas")

from command_line import refused, run

from ar_fast import _library, heads, models

FIXED_SEED = 0
pytestmark = pytest.mark.skipif(_library.backend == "reference", reason="the references do not compress")


def saved(model: object, folder: Path) -> Path:
    model.save(folder)
    return folder


@pytest.mark.parametrize(
    "head, high, dtype",
    [
        (heads.Bernoulli(), 2, np.uint8),
        (heads.Bernoulli(), 2, np.float32),
        (heads.LogisticMixture(2, 256), 256, np.uint8),
        (heads.LogisticMixture(2, 9), 9, np.int64),
        (heads.Categorical(5), 5, np.int32),
    ],
)
def test_arrays(head, high, dtype, tmp_path):
    folder = saved(models.NADE((3, 5), hidden_features=4, head=head), tmp_path / "model")
    x = np.random.default_rng(0).integers(high, size=(41, 3, 5)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    said = run("compress", folder, tmp_path / "x.npy", tmp_path / "x.arf", "--chunk", 9, "--threads", 1)
    assert f"615 values in {(tmp_path / 'x.arf').stat().st_size} bytes" in said
    run("decompress", folder, tmp_path / "x.arf", tmp_path / "y.npy")
    assert np.array_equal(np.load(tmp_path / "y.npy"), x)
    run("decompress", folder, tmp_path / "x.arf", tmp_path / "y.npz")
    assert np.array_equal(np.load(tmp_path / "y.npz")["samples"], x)
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]


def test_pictures_of_any_size(tmp_path):
    from PIL import Image

    model = models.OffsetNADE((6, 6), hidden_features=4, window=2, head=heads.LogisticMixture(2, 256))
    folder = saved(model, tmp_path / "model")
    for shape in ((6, 6), (9, 14)):
        pixels = np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "x.png")
        run("compress", folder, tmp_path / "x.png", tmp_path / "x.arf")
        run("decompress", folder, tmp_path / "x.arf", tmp_path / "y.png")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "y.png")), pixels)
        run("decompress", folder, tmp_path / "x.arf", tmp_path / "y.npy")
        assert np.array_equal(np.load(tmp_path / "y.npy"), pixels[None])
    np.save(tmp_path / "two.npy", np.zeros((2, 6, 6), np.uint8))
    run("compress", folder, tmp_path / "two.npy", tmp_path / "two.arf")
    assert "a .png is one image, got 2" in refused("decompress", folder, tmp_path / "two.arf", tmp_path / "y.png")


@pytest.mark.parametrize("vocabulary", ["bytes", "a bcé\r\n"])
def test_texts(vocabulary, tmp_path):
    folder = saved(models.CharRNN(vocabulary, 5), tmp_path / "model")
    text = "a cab\r\nbéca " * 7
    (tmp_path / "x.txt").write_bytes(text.encode())
    run("compress", folder, tmp_path / "x.txt", tmp_path / "x.arf", "--no-verify")
    run("decompress", folder, tmp_path / "x.arf", tmp_path / "y.txt")
    assert (tmp_path / "y.txt").read_bytes() == text.encode()


def test_a_table_of_a_run(tmp_path):
    import pandas

    random = np.random.default_rng(1)
    frame = pandas.DataFrame({"job": random.choice(["baker", "clerk"], 60), "children": random.integers(0, 4, 60)})
    frame.to_csv(tmp_path / "x.csv", index=False)
    run("train", "nade", "--data", tmp_path / "x.csv", "--epochs", 1, "--out", tmp_path / "run", "--hidden", 3)
    run("compress", tmp_path / "run", tmp_path / "x.csv", tmp_path / "x.arf")
    run("decompress", tmp_path / "run", tmp_path / "x.arf", tmp_path / "y.csv")
    assert pandas.read_csv(tmp_path / "y.csv").equals(frame)


def test_bits_that_a_threshold_made(tmp_path):
    grey = np.random.default_rng(2).integers(256, size=(60, 4, 4)).astype(np.uint8)
    np.save(tmp_path / "grey.npy", grey)
    options = ["--data", tmp_path / "grey.npy", "--values", "binary", "--epochs", 1, "--hidden", 3]
    run("train", "nade", *options, "--out", tmp_path / "run")
    assert "a threshold makes" in refused("compress", tmp_path / "run", tmp_path / "grey.npy", tmp_path / "x.arf")
    np.save(tmp_path / "bits.npy", grey > 127)
    run("compress", tmp_path / "run", tmp_path / "bits.npy", tmp_path / "x.arf")
    run("decompress", tmp_path / "run", tmp_path / "x.arf", tmp_path / "y.npy")
    assert np.array_equal(np.load(tmp_path / "y.npy"), grey > 127)


def test_errors(tmp_path):
    from PIL import Image

    bits = saved(models.NADE((4, 4), hidden_features=3), tmp_path / "bits")
    reals = saved(models.RNADE(3, hidden_features=3), tmp_path / "reals")
    x, arf = tmp_path / "x.npy", tmp_path / "x.arf"
    np.save(x, np.zeros((3, 4, 4), np.uint8))
    run("compress", bits, x, arf)
    assert "must be bits, levels, categories or characters" in refused("compress", reals, x, arf)
    assert "must end in one of .arf" in refused("compress", bits, x, tmp_path / "x.zip")
    assert "must end in one of .npy, .npz" in refused("decompress", bits, arf, tmp_path / "y.png")
    assert "must be what compress returned" in refused("decompress", bits, x, tmp_path / "y.npy")
    assert "No such file" in refused("decompress", bits, tmp_path / "none.arf", tmp_path / "y.npy")
    other = saved(models.NADE((4, 4), hidden_features=3), tmp_path / "other")
    assert "model must be the one that compressed" in refused("decompress", other, arf, tmp_path / "y.npy")
    np.save(x, np.full((3, 4, 4), 2))
    assert "whole numbers in 0 ... 1" in refused("compress", bits, x, tmp_path / "z.arf")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "x.png")
    assert "a picture has 256 levels" in refused("compress", bits, tmp_path / "x.png", tmp_path / "z.arf")
    (tmp_path / "x.txt").write_text("text")
    assert "got the text" in refused("compress", bits, tmp_path / "x.txt", tmp_path / "z.arf")
    arf.write_bytes(arf.read_bytes()[:-9])
    assert "damaged or cut off" in refused("decompress", bits, arf, tmp_path / "y.npy")
    assert not (tmp_path / "y.npy").exists() and not (tmp_path / "z.arf").exists()
