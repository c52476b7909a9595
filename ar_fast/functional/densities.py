"""The ops of log-likelihoods: the conditionals of a NADE, and the heads."""

from __future__ import annotations

from torch import Tensor

from ._call import call

__all__ = ["head_log_prob", "nade", "nade_log_prob"]


def nade(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    *,
    order: Tensor | None = None,
    in_offsets: Tensor | None = None,
    out_offsets: Tensor | None = None,
    activation_scale: Tensor | None = None,
    activation: str = "sigmoid",
    algorithm: str = "auto",
) -> Tensor:
    r"""The parameters of every conditional of a NADE, in one sweep over the variables.

    .. math::
        a_0 = c, \quad h_p = f(s_i a_p), \quad \theta_i = b_i + V_i h_p, \quad a_{p+1} = a_p + x_i W_i,
        \quad i = \mathrm{order}[p]

    with W = in_weight, c = in_bias, V = out_weight, b = out_bias, f = activation and s = activation_scale.

    Args:
        x: (B, D). Bool, integer, or floating with in_weight's dtype or the compute dtype. If in_weight has D rows, x
            scales the row of its variable; if it has more, or in_offsets is given, an integer x selects one of the rows
            of its variable. A floating x with in_offsets holds both: categories for variables with several rows, values
            for variables with one.
        in_weight: (R_in, H), float32, float64, bfloat16 or float16.
        in_bias: (H) or (B, H), in in_weight's dtype, as are all tensors below.
        out_weight: (R_out, H), one row per parameter: R_out / D rows per variable, or as out_offsets says.
        out_bias: (R_out).
        order: (D) int64, order[p] = variable at position p; None is 0 ... D-1.
        in_offsets: (D + 1) int64, the first in_weight row of each variable; None is R_in / D rows each.
        out_offsets: (D + 1) int64, the first out_weight row of each variable; None is R_out / D rows each. A variable
            without rows has no parameters: it is an input only.
        activation_scale: (D), RNADE's factor of the pre-activations; None is 1.
        activation: "sigmoid", "tanh" or "relu".
        algorithm: "auto" or the name of one path; see ``ar_fast.explain``.

    Returns:
        (B, R_out) in the compute dtype: float64 for float64 weights, else float32. Row r belongs to the variable that
        owns row r of out_weight.

    Raises:
        RuntimeError: where a shape, dtype or device breaks a rule above.

    Source: Larochelle and Murray, "The neural autoregressive distribution estimator", AISTATS 2011, algorithm 1;
    activation_scale: Uria, Murray, Larochelle, "RNADE", NeurIPS 2013, equation 6.

    Example:
        >>> x = torch.tensor([[1, 0, 1]])
        >>> in_weight, out_weight = torch.ones(3, 2), torch.ones(3, 2)
        >>> nade(x, in_weight, torch.zeros(2), out_weight, torch.zeros(3))
        tensor([[1.0000, 1.4621, 1.4621]])
    """
    structure = order, in_offsets, out_offsets, activation_scale, activation
    return call("nade", x, in_weight, in_bias, out_weight, out_bias, *structure, algorithm)


def nade_log_prob(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    *,
    order: Tensor | None = None,
    in_offsets: Tensor | None = None,
    out_offsets: Tensor | None = None,
    activation_scale: Tensor | None = None,
    activation: str = "sigmoid",
    head: str = "bernoulli",
    levels: int = 0,
    head_kinds: Tensor | None = None,
    per_variable: bool = False,
    algorithm: str = "auto",
) -> Tensor:
    r"""The log-likelihood of a NADE, without a tensor of all conditionals' parameters.

    .. math:: \log p(x) = \sum_i \log p_{\mathrm{head}}(x_i; \theta_i)

    with the parameters :math:`\theta` of :func:`nade` and the head of :func:`head_log_prob`. If a gradient is required
    and the parameters of the batch exceed 64 MiB, they are not kept but computed again in the backward pass, some rows
    at a time. Under torch.compile this is decided if the size of the batch is known; for a batch of any size
    (``dynamic``) the B R_out parameters are kept.

    Args:
        x: (B, D), values that the head supports; dtypes and in_weight rows as in :func:`nade`.
        in_weight: (R_in, H).
        in_bias: (H) or (B, H).
        out_weight: (R_out, H); each variable has as many rows as the head has parameters.
        out_bias: (R_out).
        order: (D) int64, order[p] = variable at position p; None is 0 ... D-1.
        in_offsets: (D + 1) int64, the first in_weight row of each variable; None is R_in / D rows each.
        out_offsets: (D + 1) int64, the first out_weight row of each variable; None is R_out / D rows each.
        activation_scale: (D); None is 1.
        activation: "sigmoid", "tanh" or "relu".
        head: "bernoulli", "categorical", "gaussian_mixture", "logistic_mixture" or "per_variable".
        levels: how many values a variable can take, for "logistic_mixture"; else 0.
        head_kinds: (D, 2) int64 by variable, for "per_variable": the number of each variable's head, 0 to 3 in the list
            above, and its levels; None elsewhere.
        per_variable: return each variable's term instead of their sum.
        algorithm: "auto" or the name of one path; see ``ar_fast.explain``.

    Returns:
        Nats in the compute dtype: (B), summed in float64, or (B, D) if per_variable.

    Raises:
        RuntimeError: where a shape, dtype or device breaks a rule above.

    Source: Larochelle and Murray, AISTATS 2011, equation 3; Uria, Murray, Larochelle, "RNADE", NeurIPS 2013.

    Example:
        >>> zeros = torch.zeros(3, 2)
        >>> nade_log_prob(torch.tensor([[1, 0, 1]]), zeros, torch.zeros(2), zeros, torch.zeros(3))
        tensor([-2.0794])
    """
    structure = order, in_offsets, out_offsets, activation_scale, activation
    what = head, levels, head_kinds, per_variable, algorithm
    return call("nade_log_prob", x, in_weight, in_bias, out_weight, out_bias, *structure, *what)


def head_log_prob(
    parameters: Tensor,
    x: Tensor,
    *,
    offsets: Tensor | None = None,
    head: str = "bernoulli",
    levels: int = 0,
    head_kinds: Tensor | None = None,
) -> Tensor:
    r"""The log-likelihood of values under the given parameters of their distributions.

    .. math::
        \mathrm{bernoulli:} \quad & x l - \log(1 + e^l) \\
        \mathrm{categorical:} \quad & l_x - \log \textstyle\sum_k e^{l_k} \\
        \mathrm{gaussian\_mixture:} \quad
            & \log \textstyle\sum_k \mathrm{softmax}(l)_k \, N(x; \mu_k, e^{2 \max(s_k, -7)}) \\
        \mathrm{logistic\_mixture:} \quad & \log \textstyle\sum_k \mathrm{softmax}(l)_k \,
            \big(F(\tfrac{x + g - \mu_k}{e^{s_k}}) - F(\tfrac{x - g - \mu_k}{e^{s_k}})\big),
            \quad g = 1 / (\mathrm{levels} - 1)

    where F is the sigmoid. A variable's parameters lie side by side: one logit; K logits; or K logits, K means, K
    log-scales. The bins of logistic_mixture lie on the grid of ``levels`` values from -1 to 1; the first and the last
    bin are open. All parameters that the dtype can hold have a finite log-likelihood and finite gradients.

    Args:
        parameters: (B, R_out), float32 or float64.
        x: (B, D), bool, integer or floating: a value in [0, 1], a category, a real value, or a value on the grid.
        offsets: (D + 1) int64, the first parameter of each variable; None is R_out / D each.
        head: "bernoulli", "categorical", "gaussian_mixture", "logistic_mixture" or "per_variable".
        levels: how many values a variable can take, for "logistic_mixture"; else 0.
        head_kinds: (D, 2) int64 by variable, for "per_variable": the number of each variable's head, 0 to 3 in the list
            above, and its levels; None elsewhere.

    Returns:
        (B, D) nats, in the dtype of parameters.

    Raises:
        RuntimeError: where a shape, dtype or device breaks a rule above.

    Source: Uria, Murray, Larochelle, "RNADE", NeurIPS 2013, equations 7 to 10; Salimans, Karpathy, Chen, Kingma,
    "PixelCNN++", ICLR 2017, equation 2.

    Example:
        >>> head_log_prob(torch.zeros(1, 4), torch.tensor([[0, 1]]), head="categorical")
        tensor([[-0.6931, -0.6931]])
    """
    return call("head_log_prob", parameters, x, offsets, head, levels, head_kinds)
