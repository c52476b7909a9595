"""Small calls of every op with its gradients, and of every model: what runs under valgrind and under sanitizers.

``python small_calls.py`` prints the names of what it called.
"""

from collections.abc import Iterator

import model_cases
import op_cases
import torch
from torch import Tensor

from ar_fast import functional


def _leaves(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for element in value:
            yield from _leaves(element)


def call_ops() -> None:
    for name, make_arguments in op_cases.GOOD.items():
        if name == "fvsbn_sample":
            continue  # of CUDA alone
        arguments = make_arguments()
        has_gradient = "sample" not in name and name != "inverse_adjoint"
        differentiated = [t for t in _leaves(list(arguments.values())) if t.is_floating_point() and has_gradient]
        for tensor in differentiated:
            tensor.requires_grad_()
        results = [t for t in _leaves(getattr(functional, name)(**arguments)) if t.requires_grad]
        if results:
            torch.autograd.grad(sum(t.sum() for t in results), differentiated, allow_unused=True)
        print(name)


def call_models() -> None:
    for kind in model_cases.KINDS:
        model = model_cases.make_model(kind, (3, 3), dtype=torch.float32)
        x, log_prob = model.sample(3, seed=0, return_log_prob=True)
        model.log_prob(x).sum().backward()
        assert torch.allclose(model.log_prob(x), log_prob.float(), atol=1e-3)
        print(kind)


if __name__ == "__main__":
    call_ops()
    call_models()
