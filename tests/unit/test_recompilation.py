"""torch.compile and torch.export of batches of several sizes: one compilation for a size, one for all others."""

import pytest
import torch
from structure_cases import CASES, data, make
from torch._dynamo.testing import CompileCounterWithBackend

from ar_fast import functional
from ar_fast.models import deep_nade

FULL = pytest.mark.full
# Of the models that compile within seconds; the others are of the full suite.
FAST = (
    "NADE-list",
    "FVSBN-PerVariable",
    "DeepNADE-2-Bernoulli",
    "OffsetNADE-Categorical",
    "MADE-Bernoulli",
)
REPRESENTATIVES = [case if case.id in FAST else pytest.param(*case.values, id=case.id, marks=FULL) for case in CASES]
pytestmark = pytest.mark.heavy


MODES = [
    pytest.param(*case.values, mode, id=f"{case.id}-{mode}", marks=case.marks if mode == "gradient" else FULL)
    for case in REPRESENTATIVES
    for mode in ("gradient", "no gradient", "forward")
]


@pytest.mark.parametrize(("kind", "head", "mode"), MODES)
def test_batches_of_many_sizes_compile_twice(device, kind, head, mode):
    model = make(kind, head, device=device)
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    function = model if mode == "forward" else lambda x, context: model.log_prob(x, context)
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for rows in (2, 3, 7, 5):
        x, context = data(head, rows=rows, device=device)
        with torch.set_grad_enabled(mode != "no gradient"):
            got = compiled(x, context)
        torch.testing.assert_close(got, function(x, context))
        if mode == "gradient":
            got.sum().backward()
    assert counter.frame_count <= 2


@pytest.mark.parametrize(("kind", "head"), REPRESENTATIVES)
def test_log_prob_is_exported_with_a_dynamic_batch(device, kind, head):
    class LogProb(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = make(kind, head, device=device)

        def forward(self, x, context):
            return self.model.log_prob(x, context)

    module = LogProb()
    x, context = data(head, rows=4, device=device)
    batch = torch.export.Dim("batch", min=2, max=1000)
    shapes = {"x": {0: batch}, "context": None if context is None else {0: batch}}
    exported = torch.export.export(module, (x, context), dynamic_shapes=shapes).module()
    for rows in (4, 2, 9):
        x, context = data(head, rows=rows, device=device)
        torch.testing.assert_close(exported(x, context), module(x, context))


@pytest.mark.parametrize("mode", ["gradient", pytest.param("no gradient", marks=FULL)])
@pytest.mark.parametrize("order", [pytest.param(None, marks=FULL), [2, 0, 3, 1]])
def test_positions_in_several_blocks_compile_twice(monkeypatch, mode, order):
    """However many rows there are, a compiled DeepNADE of several layers has as many blocks of positions."""
    monkeypatch.setattr(deep_nade, "_BLOCK_ELEMENTS", 3 * deep_nade._COMPILED_ROWS * 6)
    model = make("DeepNADE-2", "Bernoulli", order=order)
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: model.log_prob(x), fullgraph=True, backend=counter)
    for rows in (2, 3, 1000, 5):
        x, _ = data("Bernoulli", rows=rows)
        with torch.set_grad_enabled(mode == "gradient"):
            got = compiled(x)
        torch.testing.assert_close(got, model.log_prob(x))
        if mode == "gradient":
            gradients = torch.autograd.grad(got.sum(), list(model.parameters()))
            wanted = torch.autograd.grad(model.log_prob(x).sum(), list(model.parameters()))
            torch.testing.assert_close(gradients, wanted)
    assert counter.frame_count <= 2


def test_a_compiled_batch_keeps_its_parameters_at_any_size():
    """A batch of more than 64 MiB of parameters compiles no other time, and gives the gradients of the eager op, which
    computes them again."""
    generator = torch.Generator().manual_seed(0)
    sizes = (5000, 2), (2,), (5000, 2), (5000,)
    weights = [(0.1 * torch.randn(size, generator=generator)).requires_grad_() for size in sizes]
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def log_prob(x):
        return functional.nade_log_prob(x, *weights, head="categorical")

    compiled = torch.compile(log_prob, fullgraph=True, backend=counter)
    for rows in (3, 5, 4096):
        x = torch.randint(0, 2500, (rows, 2), generator=generator)
        got = torch.autograd.grad(compiled(x).sum(), weights)
        torch.testing.assert_close(got, torch.autograd.grad(log_prob(x).sum(), weights), rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 2
