"""Runs the tests of kernels at their tiles' boundaries on a GPU too: they are written for tensors on the CPU, as the
emulation has them."""

import torch

# The fiber_order of a test that runs on a GPU; its name is what `pytest -k cuda` finds.
ORDER = "cuda"


def available() -> list[str]:
    return [ORDER] if torch.cuda.is_available() else []


def moved(values, device):
    if isinstance(values, torch.Tensor):
        return values.to(device)
    return type(values)(moved(value, device) for value in values) if isinstance(values, (list, tuple)) else values


class Ops:
    """torch.ops.ar_fast for tensors on the CPU: every op runs on the GPU, and gives its results on the CPU."""

    def __getattr__(self, name):
        import ar_fast  # noqa: F401 (it loads the library)

        op = getattr(torch.ops.ar_fast, name)

        def run(*arguments, **named):
            on_device = {key: moved(value, "cuda") for key, value in named.items()}
            return moved(op(*moved(arguments, "cuda"), **on_device), "cpu")

        return run
