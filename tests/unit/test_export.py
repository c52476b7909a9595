"""to_torch: a module that gives the model's numbers without ar_fast, with any batch; and ONNX from it."""

import subprocess
import sys

import pytest
import torch
from structure_cases import CASES, data, make

from ar_fast import heads, models

pytestmark = pytest.mark.heavy


def values(head, rows, dtype):
    x, context = data(head, rows=rows)
    return x.long() if head in ("Categorical", "list") else x.to(dtype), *([] if context is None else [context])


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_values_and_gradients_of_any_batch(kind, head):
    model = make(kind, head).eval()
    module = model.to_torch()
    for rows in (1, 4, 9):
        given = values(head, rows, model.dtype)
        torch.testing.assert_close(module(*given), model.log_prob(*given), rtol=1e-9, atol=1e-9)
    expected = torch.autograd.grad(model.log_prob(*given).sum(), list(model.parameters()), allow_unused=True)
    named = dict(module.named_parameters())
    found = torch.autograd.grad(module(*given).sum(), list(named.values()), allow_unused=True)
    found = dict(zip(named, found, strict=True))
    for (name, _), grad in zip(model.named_parameters(), expected, strict=True):
        own = found[f"model.{name}"]
        assert (own is None) == (grad is None)
        if grad is not None:
            torch.testing.assert_close(own, grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "model",
    [
        models.NADE((3, 2), 5, order=[3, 1, 5, 0, 2, 4], activation_scale=True),
        models.NADE(6, 5, head=heads.Categorical(3), order=[3, 1, 5, 0, 2, 4]),
        models.NADE(6, 5, head=heads.LogisticMixture(2, levels=8)),
        models.MADE(6, [8], order=[3, 1, 5, 0, 2, 4]),
    ],
    ids=["scaled", "categories", "levels", "made"],
)
def test_orders_and_heads_of_nade(model):
    model.requires_grad_(False).reset_parameters()
    given = torch.randint(0, 3 if "Categorical" in repr(model.head) else 2, (5, *model.event_shape))
    x = given if "Categorical" in repr(model.head) else given.to(model.dtype)
    torch.testing.assert_close(model.to_torch()(x), model.log_prob(x), rtol=1e-4, atol=1e-5)


def test_it_runs_in_a_process_without_ar_fast(tmp_path):
    model = models.NADE(6, 5).eval()
    x = torch.randint(0, 2, (4, 6)).float()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model.to_torch(), (x,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "nade.pt2")
    torch.save({"x": x.repeat(2, 1), "log_prob": model.log_prob(x.repeat(2, 1)).detach()}, tmp_path / "expected.pt")
    code = (
        "import sys, torch\n"
        "sys.modules['ar_fast'] = None\n"
        "module = torch.export.load('nade.pt2').module()\n"
        "expected = torch.load('expected.pt', weights_only=True)\n"
        "torch.testing.assert_close(module(expected['x']), expected['log_prob'])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["NADE", "MADE", "MADE-residual", "FVSBN", "RNN", "RNN-LSTM"])
@pytest.mark.parametrize("head", ["Bernoulli", "Categorical", "GaussianMixture", "PerVariable"])
@pytest.mark.parametrize("size", [1, 20], ids=["moderate", "confident"])
def test_onnx_with_a_dynamic_batch(kind, head, size, tmp_path):
    if size == 1 and kind != "NADE":
        pytest.skip("an export takes long: the head's part of it is the same, and confident models are the harder ones")
    if head == "PerVariable" and kind not in ("NADE", "MADE", "MADE-residual"):
        pytest.skip("an RNN shares its weights between variables; ONNX has no repeat_interleave as FVSBN needs it")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = make(kind, head).float().eval()
    with torch.no_grad():
        # Probabilities that float32 does not hold: their logarithms must not come from them.
        for parameter in model.parameters():
            parameter.mul_(size)
    given = values(head, 3, torch.float32)
    given = tuple(tensor.float() if tensor.is_floating_point() else tensor for tensor in given)
    # ONNX has no expm1, so that the probability of a narrow level loses digits there.
    tolerance = 1e-3 if head == "PerVariable" else 1e-4
    batch, path = torch.export.Dim("batch"), tmp_path / "model.onnx"
    shapes = tuple({0: batch} for _ in given)
    torch.onnx.export(model.to_torch(), given, path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path)
    for rows in (1, 7):
        given = values(head, rows, torch.float32)
        given = [tensor.float() if tensor.is_floating_point() else tensor for tensor in given]
        names = [own.name for own in session.get_inputs()]
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)})
        torch.testing.assert_close(
            torch.from_numpy(found), model.log_prob(*given).detach(), rtol=tolerance, atol=tolerance
        )


def test_what_it_cannot_take_is_named():
    with pytest.raises(ValueError, match="model must be a model of ar_fast"):
        from ar_fast.export import to_torch

        to_torch(torch.nn.Linear(2, 2))
