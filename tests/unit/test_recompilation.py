"""torch.compile and torch.export of batches of several sizes: one compilation for a size, one for all others."""

import pytest
import torch
from structure_cases import CASES, data, make
from torch._dynamo.testing import CompileCounterWithBackend

FULL = pytest.mark.full
# One of each model; the others are of the full suite.
FAST = (
    "NADE-list",
    "ARMLP-Bernoulli",
    "FVSBN-PerVariable",
    "DeepNADE-2-Bernoulli",
    "OffsetNADE-Categorical",
    "MADE-Bernoulli",
)
REPRESENTATIVES = [case if case.id in FAST else pytest.param(*case.values, id=case.id, marks=FULL) for case in CASES]
pytestmark = pytest.mark.models


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
