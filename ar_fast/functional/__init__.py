"""The ops as functions: names, keyword arguments and documentation for the compiled library.

Each call takes the fastest entry point: the pybind11 module in eager mode, and ``torch.ops`` under ``torch.compile``. A
call runs the plain-torch reference of ``ar_fast.reference`` where a compiled op cannot be differentiated or batched
(under ``torch.func`` transforms, and for tensors with a tangent of ``torch.autograd.forward_ad``), and under
``AR_FAST_BACKEND=reference``. A warning says once that a reference runs.
"""

from ._call import call as call
from ._call import transformed as transformed
from .densities import head_log_prob, nade, nade_log_prob
from .grids import offset_nade_sample
from .masked import masked_linear, masked_linear_grad_input
from .recurrent import RnnSample as RnnSample
from .recurrent import rnn_sample
from .sampling import MlpLayer as MlpLayer
from .sampling import armlp_sample, deep_nade_sample, fvsbn_sample, masked_mlp_sample, nade_sample
from .transforms import inverse_adjoint, masked_mlp_flow, univariate_transform

__all__ = [
    "armlp_sample",
    "deep_nade_sample",
    "fvsbn_sample",
    "head_log_prob",
    "inverse_adjoint",
    "masked_linear",
    "masked_linear_grad_input",
    "masked_mlp_flow",
    "masked_mlp_sample",
    "nade",
    "nade_log_prob",
    "nade_sample",
    "offset_nade_sample",
    "rnn_sample",
    "univariate_transform",
]
