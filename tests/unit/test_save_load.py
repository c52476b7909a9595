"""Model directories: what is written comes back, and anything else is refused and leaves the model untouched."""

import json
import pickle

import pytest
import safetensors.torch
import torch
from model_cases import CASES, KINDS, make_context, make_model, random_binary

from ar_fast import models


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize("kind, context_features", CASES)
@pytest.mark.parametrize("order", [None, "random"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_round_trip(kind, context_features, order, dtype, tmp_path):
    model = make_model(kind, (2, 3), context_features, order=order, dtype=dtype)
    x = random_binary(4, 2, 3, dtype=dtype)
    context = make_context(context_features, 4, dtype=dtype)
    model.save(tmp_path / "new" / "directory")
    assert sorted(path.name for path in (tmp_path / "new" / "directory").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    made = models.load(tmp_path / "new" / "directory")
    assert type(made) is type(model) and made.dtype == dtype and repr(made) == repr(model)
    assert torch.equal(made.log_prob(x, context), model.log_prob(x, context))
    other = make_model(kind, (2, 3), context_features, order=None if order is None else [5, 4, 3, 2, 1, 0], dtype=dtype)
    other.reset_parameters()
    assert other.load(tmp_path / "new" / "directory") is other
    assert unchanged(other, snapshot(model))


def test_degrees_come_back(tmp_path):
    model = models.MADE(4, [3], activation="elu", degrees=[[3, 0, 2]])
    model.save(tmp_path)
    assert [layer.tolist() for layer in models.load(tmp_path).degrees] == [[0, 2, 3]]


def test_the_config_says_what_the_model_is(tmp_path):
    make_model("NADE", (2, 3)).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["format"] == "ar_fast.model" and config["model"] == "NADE" and config["order"] == "permutation"
    assert config["config"] == {
        "event_shape": [2, 3],
        "hidden_features": 13,
        "activation": "sigmoid",
        "activation_scale": False,
        "head": {"name": "Bernoulli"},
        "context_features": 0,
        "dtype": "float64",
    }


def truncate(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def truncate_header(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def pickled(directory):
    (directory / "model.safetensors").write_bytes(pickle.dumps({"in_weight": 1}))


def foreign_tensors(directory):
    safetensors.torch.save_file({"conv.weight": torch.ones(2)}, directory / "model.safetensors")


def edit_tensors(**changes):
    def edit(directory):
        path = directory / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        safetensors.torch.save_file(tensors | changes, path)

    return edit


def edit_config(**changes):
    def edit(directory):
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


DAMAGES = [
    (truncate, r"model.safetensors must be a whole safetensors file"),
    (truncate_header, r"model.safetensors must be a whole safetensors file"),
    (pickled, r"model.safetensors must be a whole safetensors file"),
    (foreign_tensors, r"tensors must be \['in_bias', 'in_weight', .*got \['conv.weight'\]"),
    (
        edit_tensors(in_bias=torch.ones(5)),
        r"in_bias must be torch.float64 of shape \(13,\), got torch.float32 of shape \(5,\)",
    ),
    (edit_tensors(out_bias=torch.ones(6)), r"out_bias must be torch.float64 of shape \(6,\), got torch.float32"),
    (edit_tensors(order=torch.zeros(6, dtype=torch.int64)), r"order: must be a permutation of 0 ... 5, got 0 6 times"),
    (lambda directory: (directory / "config.json").write_text("{"), r"config.json must be JSON"),
    (lambda directory: (directory / "config.json").write_bytes(b"\xff\xfe\x00"), r"config.json must be JSON"),
    (lambda directory: (directory / "config.json").write_text("[1]"), r"config.json must be that of an ar_fast model"),
    (edit_config(format="other"), r"config.json must be that of an ar_fast model"),
    (edit_config(format_version=2), r"format_version must be 1, got 2"),
    (edit_config(config=None), r"config.json must hold a model's 'config' and 'order'"),
]


@pytest.mark.parametrize("damage, message", DAMAGES)
def test_damaged_files_are_refused(damage, message, tmp_path):
    model = make_model("NADE", (2, 3))
    model.save(tmp_path)
    damage(tmp_path)
    model.reset_parameters()
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"^(load: )?{message}"):
        model.load(tmp_path)
    assert unchanged(model, before)
    with pytest.raises(ValueError, match=message):
        models.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files_are_named(name, tmp_path):
    model = make_model("NADE", (2, 3))
    model.save(tmp_path)
    (tmp_path / name).unlink()
    for load in (model.load, models.load):
        with pytest.raises(FileNotFoundError, match=r"directory must hold config.json and model.safetensors, got .*"):
            load(tmp_path)


@pytest.mark.parametrize(
    "other, message",
    [
        (("MADE", (2, 3)), "model must be 'MADE' as in this model, got 'NADE'"),
        (("NADE", (3, 2)), r"event_shape must be \[3, 2\] as in this model, got \[2, 3\]"),
        (("NADE", (2, 3), 4), "context_features must be 4 as in this model, got 0"),
    ],
)
def test_another_model_is_refused(other, message, tmp_path):
    make_model("NADE", (2, 3)).save(tmp_path)
    model = make_model(*other)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"load: {message}"):
        model.load(tmp_path)
    assert unchanged(model, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_the_identity_order_is_refused_by_one_in_a_permutation(kind, tmp_path):
    make_model(kind, 6, order=None).save(tmp_path)
    with pytest.raises(ValueError, match="order must be 'permutation' as in this model, got 'identity'"):
        make_model(kind, 6).load(tmp_path)


def test_a_config_that_makes_no_model_is_refused(tmp_path):
    make_model("NADE", (2, 3)).save(tmp_path)
    edit_config(model="os.system")(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"model must be one of ARMLP, CharRNN, DeepNADE, FVSBN, MADE, .*RNADE, RNN, got 'os\.system'",
    ):
        models.load(tmp_path)
    bernoulli = {"name": "Bernoulli"}
    edit_config(model="NADE", config={"event_shape": [2, 3], "dtype": "float64", "head": bernoulli, "surprise": 1})(
        tmp_path
    )
    with pytest.raises(ValueError, match=r"config.json must describe a NADE, got .*surprise"):
        models.load(tmp_path)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    model = make_model("NADE", (2, 3))
    model.save(tmp_path)
    before = snapshot(model)

    def fail(*_):
        raise OSError("no space left on device")

    model.reset_parameters()
    monkeypatch.setattr("ar_fast.models._files.serialize", fail)
    with pytest.raises(OSError, match="no space left"):
        model.save(tmp_path)
    assert unchanged(models.load(tmp_path), before)


def test_tied_weights_are_refused(tmp_path):
    model = models.NADE(4, 3)
    model.out_weight = model.in_weight
    message = "save: parameters and buffers must not share memory, got tied in_weight and out_weight"
    with pytest.raises(ValueError, match=message):
        model.save(tmp_path)
    both = torch.randn(8, 3)
    model.in_weight, model.out_weight = torch.nn.Parameter(both[:4]), torch.nn.Parameter(both[3:7])
    with pytest.raises(ValueError, match=message):
        model.save(tmp_path)
    assert not list(tmp_path.glob("*.safetensors*"))
    # Parts of one piece of memory that do not overlap are separate.
    model.out_weight = torch.nn.Parameter(both[4:])
    model.save(tmp_path)
    x = torch.ones(2, 4)
    assert torch.equal(models.load(tmp_path).log_prob(x), model.log_prob(x))
