"""Chains of masked networks for masked_mlp_flow."""

import torch
from transform_cases import TRANSFORMS

from ar_fast.functional import MlpLayer

CONTEXT = MlpLayer.CONTEXT


# The layers of each network, by their widths; None stands for the parameters.
PROGRAMS = {
    "plain": ([MlpLayer((0,)), MlpLayer((1,)), MlpLayer((2,), activated=False)], [17, 9, None]),
    "linear": ([MlpLayer((0,), activated=False)], [None]),
    "residual": (
        [
            MlpLayer((0,), activated=False), MlpLayer((), add=1), MlpLayer((2,)),
            MlpLayer((3,), add=1, activated=False), MlpLayer((4,), activated=False),
        ],
        [13, 13, 13, 13, None],
    ),
    "direct": ([MlpLayer((0,)), MlpLayer((1, 0), activated=False)], [11, None]),
    "sum": ([MlpLayer((0,)), MlpLayer((0,), add=1), MlpLayer((2, 1), activated=False)], [8, 8, None]),
    # As nflows' networks read a context: through the activation, and as a second term within a block.
    "through": (
        [MlpLayer((CONTEXT,)), MlpLayer((0,), add=1), MlpLayer((2,)), MlpLayer((3,), activated=False)],
        [12, 12, 10, None],
    ),
    "within": (
        [
            MlpLayer((0, CONTEXT), activated=False), MlpLayer((), add=1), MlpLayer((2, CONTEXT), add=1),
            MlpLayer((3,), activated=False),
        ],
        [7, 7, 7, None],
    ),
}  # fmt: skip


# The chains: how many transforms, which of them are followed by a permutation, and where the context's columns stand.
CHAINS = {
    "one": (1, (), "none"),
    "before": (3, (0, 1), "before"),
    "after": (2, (1,), "after"),
    "four": (4, (2,), "none"),
}


def case(network, name, variables, context=0, chain="one", dtype=torch.float64, device="cpu", bias_rows=0):
    """The weights, masks and biases of random networks, with the masks of the order 0 ... D-1, and their options."""
    program, layer_widths = PROGRAMS[network]
    transforms, ordered, columns = CHAINS[chain]
    constants, count = TRANSFORMS[name]
    reads = any(CONTEXT in layer.sources for layer in program)
    context = context or 2 * (reads or columns != "none")
    first = context if columns == "before" else 0
    inputs = variables + (0 if columns == "none" else context)
    widths = [inputs, *(variables * count if width is None else width for width in layer_widths)]
    # The degree of a unit: how many variables it may see. Columns of the context have degree 0.
    degrees = {CONTEXT: torch.zeros(context, dtype=torch.int64), 0: torch.zeros(inputs, dtype=torch.int64)}
    degrees[0][first : first + variables] = torch.arange(1, variables + 1)
    for layer, width in enumerate(widths[1:]):
        last = layer == len(program) - 1
        # The network reads the context in all units, so also in a layer of the context alone.
        alone = program[layer].sources == (CONTEXT,)
        degrees[layer + 1] = (
            torch.arange(variables).repeat_interleave(count) if last else torch.arange(width) % variables
        )
        degrees[layer + 1] = degrees[layer + 1] * (not alone)
    weights, masks, biases = [], [], []
    for index in range(transforms):
        for layer, unit in enumerate(program):
            for term, source in enumerate(unit.sources):
                mask = degrees[layer + 1][:, None] >= degrees[source]
                shape = mask.shape
                masks.append(mask.new_empty(0) if source == CONTEXT else mask.to(device))
                weights.append(torch.randn(shape, dtype=torch.float64).div(max(1, shape[1]) ** 0.5).to(device, dtype))
                rows = (bias_rows,) if bias_rows and layer == 0 and index == 0 else ()
                empty = layer == 2 and network == "residual"
                size = (0,) if empty or (term and network == "direct") else (*rows, shape[0])
                biases.append(torch.randn(size, dtype=torch.float64).to(device, dtype))
    orders = [torch.randperm(variables) if index in ordered else torch.arange(0) for index in range(transforms)]
    options = {
        "program": program, "transform": name.split()[0], "constants": constants, "context_columns": columns,
        "orders": [order.to(device) for order in orders] if ordered else [],
    }  # fmt: skip
    return context, weights, masks, biases, options


def inputs(batch, variables, context, dtype=torch.float64, device="cpu"):
    x = torch.randn(batch, variables, dtype=torch.float64).to(device, dtype)
    return x, torch.randn(batch, context, dtype=torch.float64).to(device, dtype) if context else None
