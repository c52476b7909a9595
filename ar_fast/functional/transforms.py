"""The ops of autoregressive flows, in the direction of their density."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._call import call
from .sampling import MlpLayer

__all__ = ["inverse_adjoint", "masked_mlp_flow", "univariate_transform"]


def univariate_transform(
    x: Tensor,
    parameters: Tensor,
    transform: str,
    constants: Sequence[float],
    *,
    by_parameter: bool = False,
    scale_first: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Applies an increasing function to each number, with its derivative.

    .. math:: y_d = f(x_d; \theta_d), \quad \log |\det \partial y / \partial x| = \sum_d \log f'(x_d; \theta_d)

    The functions f are those of :func:`masked_mlp_sample`, which applies their inverses. Both results can be
    differentiated any number of times by x and parameters. "affine_clamp" has the gradient 0 where the raw scale is cut
    off.

    Args:
        x: (B, D), float32 or float64.
        parameters: (B, D K) in x's dtype, a row as (D, K): those of a variable side by side, an affine transform's
            shift before its raw scale.
        transform: the name of f.
        constants: those of f.
        by_parameter: a row of parameters is (K, D) instead.
        scale_first: an affine transform's raw scale stands before its shift.

    Returns:
        y (B, D), and log|det dy/dx| (B), both in x's dtype.

    Raises:
        RuntimeError: where a shape, dtype, device or name breaks a rule above.

    Sources: Papamakarios, Pavlakou, Murray, "Masked autoregressive flow", NeurIPS 2017; Durkan, Bekasov, Murray,
    Papamakarios, "Neural spline flows", NeurIPS 2019.

    Example:
        >>> y, log_det = univariate_transform(torch.ones(1, 1), torch.tensor([[3.0, 0.0]]), "affine_clamp", [-5.0, 5.0])
        >>> y, log_det
        (tensor([[4.]]), tensor([0.]))
    """
    return call(
        "univariate_transform", x, parameters, transform, [float(c) for c in constants], by_parameter, scale_first
    )


def masked_mlp_flow(
    x: Tensor,
    weights: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    *,
    context: Tensor | None = None,
    program: Sequence[MlpLayer] | None = None,
    orders: Sequence[Tensor | None] = (),
    context_columns: str = "none",
    activation: str = "relu",
    transform: str,
    constants: Sequence[float],
    by_parameter: bool = False,
    scale_first: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""The density of a flow: a chain of masked networks, each with a function of each variable.

    .. math::
        x^{t+1}_d = f(x^t_d; \theta^t_d(x^t_{<d}, c)), \quad
        \log |\det \partial x^T / \partial x^0| = \sum_t \sum_d \log f'(x^t_d; \theta^t_d)

    One call stands for all networks, transforms, permutations and log|det|, and another for all their gradients. It
    multiplies weights by their masks and whole matrices, so it is meant for layers of up to about a hundred inputs,
    where what a call costs decides; :func:`masked_linear` is for larger ones. The results can be differentiated any
    number of times by x, context, weights and biases.

    Args:
        x: (B, D), float32 or float64.
        weights: one for each term, in the order of the program, (units, units of the value it reads), in x's dtype;
            those of the first transform, then those of the second, ...
        masks: for each weight what it is multiplied by, of the same shape: bool, integer or in x's dtype; None is no
            mask. They say which variables are before which, and are not checked.
        biases: one for each term, (units) or (B, units), or None, in x's dtype.
        context: (B, C), in x's dtype.
        program: an :class:`MlpLayer` for each layer of a network, whose value 0 is x; all networks have the same. A
            term may read the context, ``MlpLayer.CONTEXT``. None is one network, a plain stack.
        orders: nothing, or one for each transform: (D) int64, after which y[:, order] takes the place of its result y,
            or None.
        context_columns: "before" or "after" puts the context's columns before or after those of x in value 0 of each
            network; "none" does not.
        activation: "relu", "sigmoid", "tanh", "elu", "softplus", "silu", "gelu" or "leaky_relu".
        transform: the name of f, whose parameters are the D K units of the last layer; see
            :func:`univariate_transform`, also for the further arguments.
        constants: those of f.
        by_parameter: the units of the last layer are (K, D), or else (D, K).
        scale_first: an affine transform's raw scale stands before its shift.

    Returns:
        y (B, D), and log|det dy/dx| (B), both in x's dtype.

    Raises:
        RuntimeError: where a shape, dtype, device or name breaks a rule above.

    Source: Papamakarios, Pavlakou, Murray, "Masked autoregressive flow", NeurIPS 2017.

    Example:
        >>> weight, mask, bias = torch.ones(4, 2), torch.tensor([[0, 0], [0, 0], [1, 0], [0, 0]]), torch.zeros(4)
        >>> y, log_det = masked_mlp_flow(
        ...     torch.tensor([[2.0, 3.0]]), [weight], [mask], [bias], transform="affine_clamp", constants=[-5.0, 5.0]
        ... )
        >>> y, log_det
        (tensor([[2., 5.]]), tensor([0.]))
    """
    if program is None:
        layers = len(weights)
        program = [MlpLayer((layer,), activated=layer + 1 < layers) for layer in range(layers)]

    def given(tensors: Sequence[Tensor | None]) -> list[Tensor]:
        return [x.new_empty(0) if own is None else own for own in tensors]

    return call(
        "masked_mlp_flow",
        x,
        context,
        list(weights),
        given(masks),
        given(biases),
        [number for layer in program for number in layer.numbers()],
        given(orders),
        context_columns,
        activation,
        transform,
        [float(c) for c in constants],
        by_parameter,
        scale_first,
    )


def inverse_adjoint(
    grad: Tensor,
    factors: Tensor,
    weights: Sequence[Tensor],
    slopes: Sequence[Tensor],
    program: Sequence[int],
    ends: Sequence[int],
) -> Tensor:
    r"""The gradient of an autoregressive transform's inverse, from its result, by one sweep over the variables.

    Where x = f^{-1}(y; theta(x)), and theta_d is a network of the variables before d, a gradient by x reaches x_d
    directly and through the parameters of all later variables:

    .. math:: a_d = g_d + \sum_{e > d} a_e \frac{\partial x_e}{\partial \theta_e}
        \frac{\partial \theta_e}{\partial x_d}

    This triangular system is solved from the last variable to the first, and each unit's adjoint is computed once: the
    arithmetic of one backward pass. Variables, and the units of each value, stand in the order in which they can be
    computed, level by level; at level l the variables of the levels before l are known.

    Args:
        grad: g (B, D), by x.
        factors: (B, D K), the derivative of each x by its own K parameters.
        weights: for each step of the network that multiplies by a matrix, (units, units of the value it reads), with
            zeros where a unit must not read another.
        slopes: for each step that multiplies unit by unit, (B, units): the derivative of an activation at its input, a
            gate, a scale.
        program: 4 numbers for each step, which makes value s + 1: the value that it reads, a second one that it adds
            or -1, 1 if it multiplies by a matrix else 0, 1 if it has slopes else 0. Value 0 is x, the last value is the
            parameters, (D, K).
        ends: L + 1 numbers for each value: level l computes its units ends[l] ... ends[l + 1] - 1. For value 0 those
            are the variables of level l - 1, and the variables of the last level follow after ends[L].

    Returns:
        a (B, D). It has no gradient.

    Raises:
        RuntimeError: where a shape, dtype, device or number breaks a rule above.

    Source: Griewank and Walther, "Evaluating derivatives", 2nd edition, 2008, chapter 15 (implicit differentiation).

    Example:
        >>> # x_0 = y_0, and x_1 = y_1 + w x_0
        >>> w = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
        >>> inverse_adjoint(torch.ones(1, 2), torch.ones(1, 2), [w], [], [0, -1, 1, 0], [0, 0, 1, 0, 1, 2])
        tensor([[4., 1.]])
    """
    return call("inverse_adjoint", grad, factors, list(weights), list(slopes), list(program), list(ends))
