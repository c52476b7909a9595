"""Damaged files: every target of tests/fuzz for a number of mutations, and the defects that these once found."""

import gzip
import io
import json
import math
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from conftest import SEED
from fuzz.fuzzing import fuzz
from fuzz.targets import TARGETS

from ar_fast import flows, models
from ar_fast.cli import sources


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_mutations(name, request):
    count = 2_000 if request.config.getoption("--full") else 20
    # Any first case: a failure names the case that repeats it.
    ran, failures = fuzz(name, count, first=SEED % 2**31)
    assert ran == count and not failures, "\n".join(failures)


HUGE = {
    "hidden_features": 10**12,
    "context_features": 10**11,
    "event_shape": [10**12],
}


def saved(model, folder, **changes):
    model.save(folder)
    config = json.loads((folder / "config.json").read_text())
    config["config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("argument", HUGE)
def test_a_config_may_not_ask_for_more_than_the_file_holds(argument, tmp_path):
    folder = saved(models.NADE(3, 4), tmp_path, **{argument: HUGE[argument]})
    with pytest.raises(ValueError, match=f"{argument} must be at most 256 with 31 numbers in model.safetensors"):
        models.load(folder)


def test_products_of_sizes_may_not_exceed_the_file_either(tmp_path):
    """Each is small, and together they are not: 250 x 250 weights, many times."""
    folder = saved(models.MADE(3, [40]), tmp_path, hidden_features=[250] * 16)
    with pytest.raises(ValueError, match=r"parameters must be at most the .* or more"):
        models.load(folder)


def test_the_sizes_of_all_transforms_together_are_known_before_their_masks(tmp_path):
    """Each may be asked for, and the masks of all of them take ten seconds."""
    flow = flows.MAF(3, transforms=2, hidden_features=(4,))
    folder = saved(flow, tmp_path, features=256, context_features=256, hidden_features=[256] * 16, transforms=32)
    with pytest.raises(ValueError, match=r"parameters must be at most the .* or more"):
        flows.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_features": [10**12]},
        {"transforms": 10**9},
        {"univariate": {"name": "spline", "bins": 10**9, "bound": 3.0, "slope": 1e-3}},
    ],
    ids=str,
)
def test_a_flow_may_not_be_larger_than_its_file(change, tmp_path):
    folder = saved(flows.MAF(3, transforms=1, hidden_features=(4,)), tmp_path, **change)
    with pytest.raises(ValueError, match="must be at most"):
        flows.load(folder)


@pytest.mark.parametrize("change", [{"n_masks": 10**9}, {"n_orders": 10**9}], ids=str)
def test_sets_of_masks_without_end(change, tmp_path):
    folder = saved(models.MADE(4, [5], degrees="random", n_masks=2, n_orders=2), tmp_path, **change)
    with pytest.raises(ValueError, match="must be at most"):
        models.load(folder)


def test_the_orders_of_a_model_of_several_are_made_after_its_size_is_known(tmp_path):
    folder = saved(models.MADE(4, [5], n_masks=2, n_orders=2), tmp_path, event_shape=[10**12])
    with pytest.raises(ValueError, match="event_shape must be at most 256"):
        models.load(folder)


@pytest.mark.parametrize("change", [{"event_shape": [10**5, 10**5]}, {"window": [10**9, 1]}], ids=str)
def test_a_model_with_shared_weights_may_not_be_endless(change, tmp_path):
    folder = saved(models.OffsetNADE((2, 3), 2, window=(1, 1)), tmp_path, **change)
    with pytest.raises(ValueError, match="must be at most"):
        models.load(folder)


def test_an_ensemble_of_very_many_members(tmp_path):
    """No list of that many names is made."""
    folder = saved(models.Ensemble([models.NADE(3, 4)]), tmp_path, members=10**15)
    with pytest.raises(FileNotFoundError, match=r"member_0 \.\.\. member_999999999999999"):
        models.load(folder)


def test_a_deeply_nested_config(tmp_path):
    models.NADE(3, 4).save(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json must be JSON"):
        models.load(tmp_path)


def npy(header, data=b"\0" * 8):
    head = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


def test_an_array_that_is_shorter_than_its_header_says(tmp_path):
    """Before memory for it is taken, as in .npy so in .npz."""
    content = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 1099511627776), }")
    (tmp_path / "data.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("data.npy", content)
    for name in ("data.npy", "data.npz"):
        with pytest.raises(ValueError, match=f"{name} must be .* its header says float64 of shape"):
            sources.read(str(tmp_path / name))


@pytest.mark.parametrize("header", ["(", "{'descr': '<f8', 'shape': (2", "\0", "{'descr': '<f8', 'shape': 3}"])
def test_a_damaged_header(header, tmp_path):
    (tmp_path / "data.npy").write_bytes(npy(header))
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("data.npy", npy(header))
    for name in ("data.npy", "data.npz"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            sources.read(str(tmp_path / name))


def test_an_archive_of_other_files(tmp_path):
    """What is no array is passed over."""
    file = io.BytesIO()
    np.savez(file, data=np.zeros((2, 3)))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("readme", b"no array")
    (tmp_path / "data.npz").write_bytes(file.getvalue())
    assert sources.read(str(tmp_path / "data.npz")).parts["all"].shape == (2, 3)


@pytest.mark.parametrize("sizes", [(2**16,) * 4, (2**32 - 1,) * 6, (0, 5), (2, 3)], ids=str)
def test_an_idx_file_whose_sizes_do_not_hold(sizes, tmp_path):
    """The product of the sizes is not taken modulo 2^64."""
    content = bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)
    for data in (content, gzip.compress(content), content[:-3]):
        (tmp_path / "data").write_bytes(data)
        with pytest.raises(ValueError, match=r"data: .*data must (hold|have an IDX header)"):
            sources.read(str(tmp_path / "data"))


def test_a_picture_that_is_larger_than_its_file(tmp_path):
    header = struct.pack(">2I5B", 60_000, 2_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + b"IHDR" + header
    content += struct.pack(">I", zlib.crc32(b"IHDR" + header))
    content += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "data.png").write_bytes(content)
    with pytest.raises(ValueError, match="must be an image: its header says 120000000 pixels"):
        sources.read(str(tmp_path / "data.png"))


def test_a_file_that_holds_what_its_header_says_is_read(tmp_path):
    np.save(tmp_path / "data.npy", np.arange(6.0).reshape(2, 3))
    assert math.prod(sources.read(str(tmp_path / "data.npy")).parts["all"].shape) == 6
    model = models.RNN(50, 2)
    # More variables than numbers: its weights are shared between them.
    model.save(tmp_path / "model")
    assert torch.equal(models.load(tmp_path / "model").out_bias, model.out_bias)
