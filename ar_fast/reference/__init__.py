"""Plain-torch references of every op and model: slow, short, differentiable, on any device.

Each op here has the arguments of its schema in csrc/ops/library.cpp, and the kernels are tested against it. The models
load the state_dict of ``ar_fast.models`` and define what those models compute. The references run under ``torch.func``
transforms and under ``AR_FAST_BACKEND=reference``.
"""

from .draws import head_draw, likeliest, philox_uniform
from .heads import (
    HEADS,
    LARGEST_DISTANCE,
    MINIMUM_LOG_SCALE,
    bernoulli_log_prob,
    categorical_log_prob,
    compute_dtype,
    gaussian_mixture_log_prob,
    head_log_prob,
    head_of,
    logistic_mixture_log_prob,
    mixture_parameters,
)
from .models import ReferenceARMLP, ReferenceDeepNADE, ReferenceFVSBN, ReferenceMADE, ReferenceNADE, ReferenceOffsetNADE
from .ops import (
    ACTIVATIONS,
    MLP_ACTIVATIONS,
    armlp_sample,
    deep_nade_sample,
    fvsbn_sample,
    mask_from_plan,
    masked_linear,
    masked_linear_grad_input,
    masked_mlp_flow,
    masked_mlp_sample,
    nade,
    nade_log_prob,
    nade_sample,
    offset_inputs,
    offset_nade_sample,
    offset_taps,
)
from .recurrent import ReferenceCharRNN, ReferenceRNN
from .rnn import GATES, rnn_cell, rnn_sample
from .transforms import inverse_adjoint, transform_inverse, univariate_transform

__all__ = [
    "ACTIVATIONS",
    "GATES",
    "HEADS",
    "LARGEST_DISTANCE",
    "MINIMUM_LOG_SCALE",
    "MLP_ACTIVATIONS",
    "ReferenceARMLP",
    "ReferenceCharRNN",
    "ReferenceDeepNADE",
    "ReferenceFVSBN",
    "ReferenceMADE",
    "ReferenceNADE",
    "ReferenceOffsetNADE",
    "ReferenceRNN",
    "armlp_sample",
    "bernoulli_log_prob",
    "categorical_log_prob",
    "compute_dtype",
    "deep_nade_sample",
    "fvsbn_sample",
    "gaussian_mixture_log_prob",
    "head_draw",
    "head_log_prob",
    "head_of",
    "inverse_adjoint",
    "likeliest",
    "logistic_mixture_log_prob",
    "mask_from_plan",
    "masked_linear",
    "masked_linear_grad_input",
    "masked_mlp_flow",
    "masked_mlp_sample",
    "mixture_parameters",
    "nade",
    "nade_log_prob",
    "nade_sample",
    "offset_inputs",
    "offset_nade_sample",
    "offset_taps",
    "philox_uniform",
    "rnn_cell",
    "rnn_sample",
    "transform_inverse",
    "univariate_transform",
]
