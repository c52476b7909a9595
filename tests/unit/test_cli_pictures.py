"""The command line: which bit is dark in a picture, when one is read and written."""

# ruff: noqa: E402 (what is imported later needs the extra)

import numpy as np
import torch
from grids import skip_module_without

skip_module_without("cli", "click", "PIL", "matplotlib")

from command_line import run
from PIL import Image

from ar_fast import models


def completed(model, folder, photo):
    """The picture that comes back where its middle is drawn, and the mask."""
    mask = np.zeros(photo.shape, np.uint8)
    mask[2:4, 2:4] = 255
    for name, pixels in (("photo", photo), ("mask", mask)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    given = ("complete", model, folder / "photo.png", "--mask", folder / "mask.png", "--particles", 20)
    run(*given, "--out", folder / "c.png")
    return np.asarray(Image.open(folder / "c.png")), mask > 0


def test_dark_is_one_as_in_the_pictures_that_are_written(tmp_path):
    torch.manual_seed(0)
    model = models.OffsetNADE((6, 6), hidden_features=3, window=(1, 1))
    with torch.no_grad():
        model.out_bias.fill_(30.0)
    model.save(tmp_path / "model")
    run("sample", tmp_path / "model", "--size", "7x8", "--out", tmp_path / "ones.png")
    ones = np.asarray(Image.open(tmp_path / "ones.png"))
    assert ones.shape == (7, 8) and (ones < 128).all()
    # The model draws nothing but ones; what is kept comes back as it was.
    photo = np.where(np.arange(56).reshape(7, 8) % 3 == 0, 255, 30).astype(np.uint8)
    drawn, hole = completed(tmp_path / "model", tmp_path, photo)
    assert (drawn[~hole] == photo[~hole]).all() and (drawn[hole] < 128).all()


def test_bright_comes_back_bright_where_a_threshold_made_the_bits(tmp_path):
    (tmp_path / "photos").mkdir()
    photos = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (30, 6, 6), p=[0.05, 0.95])
    for index, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / "photos" / f"{index:02}.png")
    run("train", "fvsbn", "--data", tmp_path / "photos", "--values", "binary", "--epochs", 1, "--out", tmp_path / "run")
    drawn, hole = completed(tmp_path / "run", tmp_path, photos[0])
    assert (drawn[~hole] == photos[0][~hole]).all() and set(drawn[hole]) <= {0, 255}
