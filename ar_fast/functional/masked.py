"""The ops of masked linear maps."""

from __future__ import annotations

from torch import Tensor

from ..masks import Mask
from ._call import call

__all__ = ["masked_linear", "masked_linear_grad_input"]


def masked_linear(
    input: Tensor,
    weight: Tensor,
    mask: Mask,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    algorithm: str = "auto",
) -> Tensor:
    r"""A linear map with masked weights and an optional activation.

    .. math:: y = f\big(x (W \odot M)^T + b\big)

    Masked weights have no effect whatever they hold, including NaN, and get a gradient of exactly zero. They do not
    read their input either: a NaN or infinity in the input reaches only the outputs whose mask allows it, at every
    batch size (docs/masks.md lists the exceptions). Only the unmasked part is computed, and nothing as large as the
    weight is written.

    Args:
        input: (..., I) in weight's dtype.
        weight: (O, I), float32, float64, bfloat16 or float16.
        mask: an :class:`ar_fast.Mask` of O outputs and I inputs on weight's device.
        bias: (O), or None.
        activation: f: "relu", "sigmoid", "tanh", "elu", "softplus", "silu", "gelu" or "leaky_relu", each with torch's
            default arguments; None is the identity. f is applied in the same pass as the sums (on CUDA with more than 8
            rows, only the first and the last of these names).
        algorithm: "auto" or the name of one path; see ``ar_fast.explain``.

    Returns:
        (..., O) in weight's dtype; 16-bit dtypes are summed in float32. Under autocast it behaves as ``F.linear``. On
        CUDA, products of float32 may be rounded to TF32 if torch's settings allow this for ``F.linear``, and sums of
        16-bit dtypes over at least 1024 rows of a large mask are torch's own: where it splits one, parts of it may be
        rounded if ``torch.backends.cuda.matmul`` allows reduced precision reductions.

    Raises:
        TypeError: if mask is not a Mask.
        ValueError: if mask does not match weight.
        RuntimeError: where a shape, dtype, device or name breaks a rule above.

    Source: Germain, Gregor, Murray, Larochelle, "MADE", ICML 2015.

    Example:
        >>> mask = Mask.from_degrees([1, 2, 3], [1, 2])
        >>> masked_linear(torch.ones(1, 3), torch.ones(2, 3), mask)
        tensor([[1., 2.]])
    """
    _check_mask("masked_linear", weight, mask)
    return call("masked_linear", input, weight, bias, *mask.plan, algorithm, activation, mask.steps)


def masked_linear_grad_input(grad_output: Tensor, weight: Tensor, mask: Mask, *, algorithm: str = "auto") -> Tensor:
    r"""The gradient of :func:`masked_linear` with respect to its input.

    .. math:: dx = dy \, (W \odot M)

    It is also useful as a masked linear map for weights that are stored with one row per input, as those of FVSBN are.
    A NaN or infinity in grad_output reaches only the inputs that its output sees. It can be differentiated any number
    of times, as :func:`masked_linear` can.

    Args:
        grad_output: (..., O) in weight's dtype.
        weight: (O, I), float32, float64, bfloat16 or float16.
        mask: an :class:`ar_fast.Mask` of O outputs and I inputs on weight's device.
        algorithm: "auto" or the name of one path; see ``ar_fast.explain``.

    Returns:
        (..., I) in weight's dtype; 16-bit dtypes are summed in float32. Autocast and TF32 act as in
        :func:`masked_linear`.

    Raises:
        TypeError: if mask is not a Mask.
        ValueError: if mask does not match weight.
        RuntimeError: where a shape, dtype or device breaks a rule above.

    Source: Germain, Gregor, Murray, Larochelle, "MADE", ICML 2015.

    Example:
        >>> mask = Mask.from_degrees([1, 2, 3], [1, 2])
        >>> masked_linear_grad_input(torch.ones(1, 2), torch.ones(2, 3), mask)
        tensor([[2., 1., 0.]])
    """
    _check_mask("masked_linear_grad_input", weight, mask)
    return call("masked_linear_grad_input", grad_output, weight, *mask.plan, algorithm, mask.steps)


def _check_mask(op: str, weight: Tensor, mask: Mask) -> None:
    if not isinstance(mask, Mask):
        raise TypeError(f"{op}: mask must be an ar_fast.Mask (Mask.from_dense makes one), got {type(mask).__name__}")
    if tuple(weight.shape) != (mask.out_features, mask.in_features):
        raise ValueError(
            f"{op}: mask must match weight of shape {tuple(weight.shape)}, "
            f"got a mask of shape ({mask.out_features}, {mask.in_features})"
        )
