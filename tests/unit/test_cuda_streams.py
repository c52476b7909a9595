"""Every op runs on torch's current CUDA stream, and so can be captured into a CUDA graph. Needs a GPU."""

import pytest
import torch
from model_cases import KINDS, make_model, random_binary

from ar_fast import Mask, functional, heads, models

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

D = 12


def categories(seed):
    return torch.randint(3, (5, D), generator=torch.Generator().manual_seed(seed)).cuda()


def bits(seed):
    return random_binary(5, D, device="cuda", dtype=torch.float32, seed=seed)


def of_model(make, values):
    """(static inputs, other inputs, what is computed of them): log p, its gradients, parameters and samples."""
    model = make()

    def run(x):
        log_prob = model.log_prob(x)
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(log_prob.sum(), parameters, allow_unused=True)
        drawn = model.sample(5, seed=3, return_log_prob=True)
        return [log_prob, model(x), *(g for g in gradients if g is not None), *drawn]

    return values(1), values(2), run


def of_layer(dtype, batch, dense):
    generator = torch.Generator().manual_seed(4)
    weight = (torch.randn(200, 136, generator=generator) / 12).to("cuda", dtype).requires_grad_()
    if dense:
        mask = Mask.from_dense(torch.rand(200, 136, generator=generator) < 0.5)
    else:
        mask = Mask.from_degrees(torch.arange(136), torch.arange(200) * 136 // 200)
    mask = mask.to("cuda")

    def values(seed):
        return torch.randn(batch, 136, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype).requires_grad_()

    def run(x):
        y = functional.masked_linear(x, weight, mask)
        return [y, *torch.autograd.grad(y.float().square().sum(), [x, weight])]

    return values(1), values(2), run


CASES = {
    kind: lambda kind=kind: of_model(lambda: make_model(kind, D, device="cuda", dtype=torch.float32), bits)
    for kind in KINDS
}
CASES |= {
    f"{kind}, categories": lambda kind=kind: of_model(
        lambda: make_model(kind, D, head=heads.Categorical(3), device="cuda", dtype=torch.float32), categories
    )
    for kind in KINDS
}
CASES["RNADE"] = lambda: of_model(
    lambda: models.RNADE(D, 20, components=3, device="cuda"),
    lambda seed: torch.randn(5, D, generator=torch.Generator().manual_seed(seed)).cuda(),
)
CASES |= {
    f"masked_linear {str(dtype)[6:]} B {batch}{' blocks' * dense}": lambda d=dtype, b=batch, m=dense: of_layer(d, b, m)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for batch in (3, 70)
    for dense in (False, True)
}


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
def test_cuda_graph(case):
    """What a replay computes is what a call does, also once the inputs have other values."""
    static, other, run = CASES[case]()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(static)
    graph.replay()
    assert_equal(results, run(static))
    with torch.no_grad():
        static.copy_(other)
    graph.replay()
    assert_equal(results, run(other))


@pytest.mark.parametrize("case", CASES)
def test_cuda_side_stream(case):
    """The input is written late on the side stream: a kernel on any other one would read what was there before."""
    late, wanted, run = CASES[case]()
    expected = run(wanted)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        with torch.no_grad():
            late.copy_(wanted)
        results = run(late)
        torch.cuda.current_stream().synchronize()
    assert_equal(results, expected)
