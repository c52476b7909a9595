"""What a checkpoint says of the mask that its weights were trained with."""

import copy
import io
import json
import re

import pytest
import safetensors.torch
import torch
from masked_cases import KINDS, blocks, make_mask
from torch import nn

from ar_fast import Mask, models
from ar_fast.nn import MaskedLinear


def layer_of(rows, **options):
    return MaskedLinear(len(rows[0]), len(rows), torch.tensor(rows, dtype=torch.bool), **options)


def through_a_file(state, **options):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, **options)


def test_weights_of_another_mask_do_not_load(device):
    first, other = layer_of([[1, 0]], device=device), layer_of([[0, 1]], device=device)
    said = [
        f"Mask(out_features=1, in_features=2, plan='nested', density=0.5) with fingerprint {layer.mask.fingerprint()}"
        for layer in (first, other)
    ]
    message = re.escape(
        f"the mask must be the one that the weights were trained with, {said[0]}, got a layer with {said[1]}"
    )
    for state in (first.state_dict(), through_a_file(first.state_dict(), weights_only=True)):
        with pytest.raises(RuntimeError, match=message):
            other.load_state_dict(state)
        with pytest.raises(RuntimeError, match=message):
            other.load_state_dict(state, strict=False)
        copy.deepcopy(first).load_state_dict(state)
    inner = nn.Sequential(nn.Linear(2, 2), copy.deepcopy(other))
    with pytest.raises(RuntimeError, match="1: the mask must be the one that the weights were trained with"):
        inner.load_state_dict(nn.Sequential(nn.Linear(2, 2), first).state_dict())
    other.set_mask(first.mask)
    other.load_state_dict(first.state_dict())
    with pytest.raises(RuntimeError, match="the mask must be the one"):
        other.load_state_dict(layer_of([[0, 1]]).state_dict())


@pytest.mark.parametrize("kind", ["sorted", "both", "blocks"])
def test_plain_linear_layers_and_files_without_metadata(tmp_path, kind):
    layer, linear = MaskedLinear(4, 5, make_mask(kind, 5, 4)), nn.Linear(4, 5)
    assert list(layer.state_dict()) == ["weight", "bias"]
    linear.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(linear.weight, layer.weight)
    layer.load_state_dict(nn.Linear(4, 5).state_dict(), strict=True)
    safetensors.torch.save_model(layer, str(tmp_path / "file"))
    other = MaskedLinear(4, 5, Mask.dense(5, 4))
    safetensors.torch.load_model(other, str(tmp_path / "file"))
    assert torch.equal(other.weight, layer.weight)
    stored = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    stored.load_state_dict(layer.state_dict())
    assert torch.equal(stored.weight, layer.weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (70, 130), (5, 3)])
def test_a_fingerprint_is_of_the_matrix(kind, shape):
    mask = make_mask(kind, *shape)
    dense = mask.to_dense()
    assert mask.fingerprint() == Mask.from_dense(dense).fingerprint() == blocks(dense).fingerprint()
    for row, column in ((0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] // 3)):
        other = dense.clone()
        other[row, column] ^= True
        assert blocks(other).fingerprint() != mask.fingerprint()
    if min(shape) > 1 and not torch.equal(dense, dense.flip(0)):
        assert blocks(dense.flip(0)).fingerprint() != mask.fingerprint()


def test_fingerprints_differ():
    """All masks of 3 x 4, and the empty ones of several shapes; and those of today stay."""
    bits = torch.cartesian_prod(*[torch.tensor([False, True])] * 12).reshape(-1, 3, 4)
    assert len({blocks(mask).fingerprint() for mask in bits}) == 2**12
    shapes = [(0, 0), (0, 3), (3, 0), (1, 3), (3, 1)]
    assert len({Mask.from_dense(torch.zeros(shape, dtype=torch.bool)).fingerprint() for shape in shapes}) == len(shapes)
    assert Mask.from_degrees([1, 2, 3], [1, 2]).fingerprint() == "ccd34d3ac08a5aa7"


def zuko_layer(mask, linear):
    """As zuko.nn.MaskedLinear saves itself."""
    return linear.state_dict() | {"mask": mask}


def nflows_layer(mask, linear, degrees):
    """As the MaskedLinear of nflows and normflows saves itself."""
    return linear.state_dict() | {"mask": mask.float(), "degrees": degrees}


def test_keys_of_other_libraries_are_compared_and_dropped(device):
    in_degrees, degrees = torch.tensor([1, 2, 3]), torch.tensor([2, 1, 2, 3])
    mask = degrees[:, None] >= in_degrees
    layer, linear = MaskedLinear(3, 4, mask, device=device), nn.Linear(3, 4, device=device)
    for state in (zuko_layer(mask, linear), nflows_layer(mask, linear, degrees)):
        result = layer.load_state_dict(state, strict=True)
        assert result.missing_keys == result.unexpected_keys == []
        assert torch.equal(layer.weight, linear.weight)
    both = nn.Sequential(layer, MaskedLinear(4, 2, torch.ones(2, 4, dtype=torch.bool), device=device))
    state = nflows_layer(mask, linear, degrees)
    both.load_state_dict(
        {f"0.{name}": tensor for name, tensor in state.items()}
        | {f"1.{name}": tensor for name, tensor in nn.Linear(4, 2).state_dict().items()}
    )
    for wrong in (zuko_layer(~mask, linear), nflows_layer(mask.flip(0), linear, degrees)):
        with pytest.raises(
            RuntimeError, match=r"mask must be the one that the weights were trained with, Mask\(.*Mask\("
        ):
            layer.load_state_dict(wrong)
    with pytest.raises(RuntimeError, match=r"mask must have shape \(O, I\), got \(4,\)"):
        layer.load_state_dict(zuko_layer(mask[:, 0], linear))
    for wrong in (torch.tensor([1, 2, 2, 3]), torch.tensor([2, 1, 2, 2]), degrees[:3], degrees.float()):
        with pytest.raises(RuntimeError, match="degrees must be those of the outputs"):
            layer.load_state_dict(nflows_layer(mask, linear, wrong))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*other"):
        layer.load_state_dict(linear.state_dict() | {"other": mask})


def test_a_model_of_other_masks_does_not_load():
    first, other = (models.MADE(5, [12], degrees="random", degree_seed=seed) for seed in (0, 1))
    with pytest.raises(
        RuntimeError, match=r"(?s)layers.0: the mask must be the one.*layers.1: the mask must be the one"
    ):
        other.load_state_dict(first.state_dict())
    several = models.MADE(5, [12], degrees="random", n_masks=3)
    copied = copy.deepcopy(several)
    copied.load_state_dict(several.use_mask(2).state_dict())
    assert copied.mask_index == 2


@pytest.mark.parametrize("arguments", [{}, {"degrees": "random"}, {"degrees": "random", "n_masks": 3, "n_orders": 2}])
@pytest.mark.parametrize("context_features", [0, 2])
def test_a_directory_says_by_which_degrees_its_weights_were_trained(tmp_path, monkeypatch, arguments, context_features):
    """safetensors keeps no metadata, and "even" and "random" once gave others in models with a context."""
    model = models.MADE(5, [12], context_features=context_features, **arguments)
    model.save(tmp_path)
    assert torch.equal(models.load(tmp_path).layers[0].weight, model.layers[0].weight)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    own = models.MADE._degrees_of
    monkeypatch.setattr(
        models.MADE, "_degrees_of", lambda self, index: [part.clamp(min=3) for part in own(self, index)]
    )
    for load in (models.load, models.MADE(5, [12], context_features=context_features, **arguments).load):
        with pytest.raises(ValueError, match=rf"load: structure must be '[0-9a-f]+' .* got '{config['structure']}'"):
            load(tmp_path)
    monkeypatch.undo()
    del config["structure"]
    path.write_text(json.dumps(config))
    if context_features:
        with pytest.raises(ValueError, match=r"config\.json must have the fingerprint of the degrees of a MADE"):
            models.load(tmp_path)
    else:
        models.load(tmp_path)
