"""A call of every op, with any number of rows, for what concerns all ops: isolation, and the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import armlp_cases
import deep_nade_op_cases
import inverse_adjoint_cases
import masked_cases
import masked_mlp_flow_cases
import mlp_cases
import nade_cases
import offset_nade_op_cases
import rnn_cases
import torch
from torch import Tensor

from ar_fast import functional

# Large enough for several threads, and rows that do not divide by them.
B, D, H = 67, 45, 70


@dataclass
class OpCall:
    """A call of an op.

    Attributes:
        forward: calls it; the results are those of the op.
        leaves: the tensors of the call that require gradients; none where the op has no gradient.
    """

    forward: Callable[[], Tensor | tuple[Tensor | None, ...]]
    leaves: tuple[Tensor, ...] = ()

    def results(self) -> list[Tensor]:
        results = self.forward()
        return [result for result in (results if isinstance(results, tuple) else [results]) if result is not None]

    def __call__(self) -> list[Tensor]:
        """The results, and the gradients of their sum."""
        results = self.results()
        if not self.leaves:
            return results
        return results + list(torch.autograd.grad(sum(result.double().sum() for result in results), self.leaves))


def of_nade(op: str, rows: int) -> OpCall:
    case = nade_cases.nade_case(rows, D, H)
    arguments = [getattr(case, name) for name in ("x", "in_weight", "in_bias", "out_weight", "out_bias")]
    leaves = tuple(tensor.requires_grad_() for tensor in arguments[1:])
    return OpCall(lambda: getattr(functional, op)(*arguments, order=case.order), leaves)


def nade(rows: int = B) -> OpCall:
    return of_nade("nade", rows)


def nade_log_prob(rows: int = B) -> OpCall:
    return of_nade("nade_log_prob", rows)


def nade_sample(rows: int = B) -> OpCall:
    case = nade_cases.nade_case(rows, D, H)
    state = case.in_bias.expand(rows, -1)
    return OpCall(
        lambda: functional.nade_sample(state, case.in_weight, case.out_weight, case.out_bias, order=case.order, seed=5)
    )


def head_log_prob(rows: int = 500) -> OpCall:
    case = nade_cases.nade_case(rows, D, 3, head="gaussian_mixture", parameters=4)
    parameters = torch.randn(rows, len(case.out_bias)).requires_grad_()
    x = case.x.requires_grad_()
    return OpCall(lambda: functional.head_log_prob(parameters, x, head="gaussian_mixture"), (parameters, x))


def masked_linear(rows: int = B) -> OpCall:
    case = masked_cases.masked_case(rows, 300, 200)
    leaves = (case.input.requires_grad_(), case.weight.requires_grad_(), case.bias.requires_grad_())
    return OpCall(lambda: functional.masked_linear(*leaves[:2], case.mask, leaves[2]), leaves)


def masked_linear_grad_input(rows: int = B) -> OpCall:
    case = masked_cases.masked_case(rows, 300, 200)
    leaves = (torch.randn(rows, 200).requires_grad_(), case.weight.requires_grad_())
    return OpCall(lambda: functional.masked_linear_grad_input(*leaves, case.mask), leaves)


def masked_mlp_sample(rows: int = B) -> OpCall:
    case = mlp_cases.mlp_case(D, [H, H])
    return OpCall(lambda: mlp_cases.sample(case, rows))


def masked_mlp_flow(rows: int = B) -> OpCall:
    context, weights, masks, biases, options = masked_mlp_flow_cases.case("plain", "affine_soft_clip", D)
    x, _ = masked_mlp_flow_cases.inputs(rows, D, context)
    leaves = (x.requires_grad_(), *(weight.requires_grad_() for weight in weights))
    return OpCall(lambda: functional.masked_mlp_flow(x, weights, masks, biases, **options), leaves)


def inverse_adjoint(rows: int = B) -> OpCall:
    arguments = inverse_adjoint_cases.case("plain", rows, 19, 2)
    return OpCall(lambda: functional.inverse_adjoint(*arguments))


def univariate_transform(rows: int = B) -> OpCall:
    x, parameters = torch.randn(rows, D).requires_grad_(), torch.randn(rows, 2 * D).requires_grad_()
    return OpCall(lambda: functional.univariate_transform(x, parameters, "affine_soft_clip", (7.0,)), (x, parameters))


def armlp_sample(rows: int = B) -> OpCall:
    case = armlp_cases.armlp_case(D, 9)
    state = torch.zeros(rows, D)
    return OpCall(lambda: functional.armlp_sample(state, **case.weights, order=case.order, seed=5))


def deep_nade_sample(rows: int = B) -> OpCall:
    case = deep_nade_op_cases.deep_case(D, (H, H))
    state = case.bias.expand(rows, -1)
    return OpCall(lambda: functional.deep_nade_sample(state, **case.tensors, **case.structure, seed=5))


def offset_nade_sample(rows: int = B) -> OpCall:
    arguments = offset_nade_op_cases.op_case(rows, (5, 9, 1), hidden=H)
    return OpCall(lambda: functional.offset_nade_sample(**arguments))


def rnn_sample(rows: int = B) -> OpCall:
    arguments = rnn_cases.op_case(rows, D, H)
    return OpCall(lambda: rnn_cases.sample(arguments))


#: Each op's call by its name, a function of the number of rows. fvsbn_sample is for CUDA alone.
OPS = {
    own.__name__: own
    for own in (
        nade, nade_log_prob, nade_sample, head_log_prob, masked_linear, masked_linear_grad_input, masked_mlp_sample,
        masked_mlp_flow, inverse_adjoint, univariate_transform, armlp_sample, deep_nade_sample, offset_nade_sample,
        rnn_sample,
    )
}  # fmt: skip
