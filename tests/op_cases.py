"""A small call of each function over an op, by its name: what is given is right, whatever else a test changes."""

import torch

from ar_fast import Mask


def nade_arguments(variables=4, hidden=3, batch=2):
    return {
        "x": torch.zeros(batch, variables),
        "in_weight": torch.ones(variables, hidden),
        "in_bias": torch.ones(hidden),
        "out_weight": torch.ones(variables, hidden),
        "out_bias": torch.ones(variables),
    }


def sample_arguments():
    arguments = nade_arguments()
    del arguments["x"], arguments["in_bias"]
    return {"state": torch.zeros(2, 3), "seed": 1} | arguments


def mlp_arguments():
    return {
        "state": torch.zeros(2, 7),
        "weights": [torch.ones(3, 4), torch.ones(4, 3)],
        "biases": [torch.ones(3), torch.ones(4)],
        "extents": [torch.tensor([1, 2, 3], dtype=torch.int32), torch.tensor([0, 1, 2, 3], dtype=torch.int32)],
        "unit_ends": [torch.tensor([0, 1, 2, 3], dtype=torch.int32)],
        "seed": 1,
    }


def offset_arguments():
    return {
        "state": torch.zeros(2, 4),
        "in_weight": torch.ones(4, 3),
        "in_bias": torch.ones(3),
        "weights": [torch.ones(2, 3)],
        "biases": [torch.ones(2)],
        "out_weight": torch.ones(1, 2),
        "out_bias": torch.ones(1),
        "grid": (2, 3, 1),
        "window": (1, 1),
        "seed": 1,
    }


def linear_arguments():
    return {
        "input": torch.ones(2, 3),
        "weight": torch.ones(4, 3),
        "mask": Mask.dense(4, 3),
        "bias": torch.ones(4),
    }


def transposed_arguments():
    return {"grad_output": torch.ones(2, 4), "weight": torch.ones(4, 3), "mask": Mask.dense(4, 3)}


def armlp_arguments(variables=4, hidden=3, batch=2):
    return {
        "state": torch.zeros(batch, variables),
        "in_weight": torch.ones((variables - 1) * variables, hidden),
        "block_starts": torch.tensor([0, (variables - 1) * variables]),
        "in_bias": torch.ones(variables, hidden),
        "out_weight": torch.ones(variables, hidden),
        "out_bias": torch.ones(variables),
        "seed": 1,
    }


def deep_nade_arguments():
    return {
        "state": torch.zeros(2, 3),
        "in_weight": torch.ones(4, 3),
        "mask_weight": torch.ones(4, 3),
        "weights": [torch.ones(5, 3), torch.ones(2, 5)],
        "biases": [torch.ones(5), torch.ones(2)],
        "out_weight": torch.ones(4, 2),
        "out_bias": torch.ones(4),
        "seed": 1,
    }


def fvsbn_arguments():
    return {"state": torch.zeros(2, 4), "weight": torch.ones(4, 4), "seed": 1}


def rnn_arguments(batch=2, hidden=3):
    """Two layers of an LSTM, with every tensor of the op that does not come with others."""
    gates, state = 4 * hidden, torch.zeros(2, batch, hidden)
    return {
        "state": state,
        "cell_state": state.clone(),
        "last": torch.zeros(batch),
        "finished": torch.zeros(batch, dtype=torch.bool),
        "in_table": torch.ones(1, gates),
        "in_bias": torch.ones(gates),
        "in_weights": [torch.ones(gates, hidden)],
        "in_biases": [torch.ones(gates)],
        "recurrent_weights": [torch.ones(gates, hidden) for _ in range(2)],
        "recurrent_biases": [torch.ones(gates) for _ in range(2)],
        "out_weight": torch.ones(1, hidden),
        "out_bias": torch.ones(1),
        "limits": torch.full((batch,), 9),
        "cell": "lstm",
        "seed": 1,
        "variables": 4,
    }


def transform_arguments():
    return {
        "x": torch.ones(2, 4),
        "parameters": torch.ones(2, 8),
        "transform": "affine_clamp",
        "constants": [-1.0, 1.0],
    }


def mlp_flow_arguments():
    return {
        "x": torch.ones(2, 4),
        "weights": [torch.ones(3, 4), torch.ones(8, 3)],
        "masks": [torch.ones(3, 4), torch.ones(8, 3)],
        "biases": [torch.ones(3), torch.ones(8)],
        "transform": "affine_clamp",
        "constants": [-1.0, 1.0],
    }


def adjoint_arguments():
    return {
        "grad": torch.ones(2, 4),
        "factors": torch.ones(2, 4),
        "weights": [torch.ones(4, 4)],
        "slopes": [],
        "program": [0, -1, 1, 0],
        "ends": [0, 0, 1, 2, 3, 0, 1, 2, 3, 4],
    }


def head_arguments():
    return {"parameters": torch.ones(2, 4), "x": torch.ones(2, 4)}


GOOD = {
    "armlp_sample": armlp_arguments,
    "deep_nade_sample": deep_nade_arguments,
    "fvsbn_sample": fvsbn_arguments,
    "head_log_prob": head_arguments,
    "inverse_adjoint": adjoint_arguments,
    "nade": nade_arguments,
    "nade_log_prob": nade_arguments,
    "nade_sample": sample_arguments,
    "masked_linear": linear_arguments,
    "masked_linear_grad_input": transposed_arguments,
    "masked_mlp_sample": mlp_arguments,
    "masked_mlp_flow": mlp_flow_arguments,
    "offset_nade_sample": offset_arguments,
    "rnn_sample": rnn_arguments,
    "univariate_transform": transform_arguments,
}
