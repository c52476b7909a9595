"""Autocast: layers under it give 16 bits, and the ops compute in float32 from there, but for masked layers, which are a
layer themselves (test_masked_linear.py)."""

import pytest
import torch
from op_cases import GOOD

from ar_fast import _library, functional


def real(value):
    return torch.is_tensor(value) and value.is_floating_point()


def cast(value, dtype):
    """A tensor, or a list of them, with random numbers that bfloat16 holds too."""
    if isinstance(value, list):
        return [cast(one, dtype) for one in value]
    return value.to(dtype) if real(value) else value


def randomised(arguments):
    """The arguments with other real numbers, which bfloat16 holds exactly."""

    def other(value):
        if isinstance(value, list):
            return [other(one) for one in value]
        return torch.rand(value.shape).bfloat16().float() if real(value) else value

    return {name: other(value) for name, value in arguments.items()}


def flat(result):
    return [one for one in ([result] if torch.is_tensor(result) else result) if one is not None]


AUTOCAST = [name for name in GOOD if not name.startswith("masked_linear")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", AUTOCAST)
def test_under_autocast_ops_compute_in_float32(name, dtype, implementation):
    """Each argument as a layer under autocast gives it, in 16 bits, and all of them: the result is that of float32."""
    if name == "fvsbn_sample" and _library.entry_point(name) is not None:
        pytest.skip("its kernel is for CUDA only")
    arguments, function = randomised(GOOD[name]()), getattr(functional, name)
    # What a weight's own dtype is decides how it is stored.
    stored = ("in_weight", "recurrent_weights", *(["weights"] if name == "masked_mlp_sample" else []))
    if name == "fvsbn_sample":
        stored = ("weight",)
    lists = {key for key, value in arguments.items() if isinstance(value, list) and value and real(value[0])}
    names = [key for key, value in arguments.items() if (real(value) or key in lists) and key not in stored]
    assert names
    for chosen in [*([one] for one in names), names]:
        mixed = arguments | {one: cast(arguments[one], dtype) for one in chosen}
        with torch.autocast("cpu", dtype=dtype):
            got = flat(function(**mixed))
        rounded = {one: cast(cast(arguments[one], dtype), torch.float32) for one in chosen}
        expected = flat(function(**arguments | rounded))
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b), f"{name}: {chosen}"


@pytest.mark.parametrize("name", [name for name in AUTOCAST if name not in ("inverse_adjoint", "head_log_prob")])
def test_under_autocast_weights_of_16_bits_stay_so(name, implementation):
    arguments = {key: cast(value, torch.bfloat16) for key, value in randomised(GOOD[name]()).items()}
    if name in ("univariate_transform", "masked_mlp_flow") or (
        name == "fvsbn_sample" and _library.entry_point(name) is not None
    ):
        pytest.skip("no weights of 16 bits")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = flat(getattr(functional, name)(**arguments))
    compute = {"state", "cell_state", "last"} & set(arguments)
    own = arguments | {key: arguments[key].float() for key in compute}
    for a, b in zip(got, flat(getattr(functional, name)(**own)), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_gradients_under_autocast_are_those_of_float32():
    arguments = randomised(GOOD["univariate_transform"]())
    leaf = arguments["parameters"].bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, log_det = functional.univariate_transform(**arguments | {"parameters": leaf})
    (gradient,) = torch.autograd.grad(y.sum() + log_det.sum(), leaf)
    wide = arguments["parameters"].clone().requires_grad_()
    y, log_det = functional.univariate_transform(**arguments | {"parameters": wide})
    (want,) = torch.autograd.grad(y.sum() + log_det.sum(), wide)
    assert gradient.dtype == torch.bfloat16 and torch.equal(gradient, want.bfloat16())
