"""Networks for inverse_adjoint."""

import torch

# The steps of each network: (source, other, weighted, sloped, width); None stands for the parameters. And for values
# that are added up, the first of them, whose units are made at the same levels.
NETWORKS = {
    "linear": ([(0, -1, 1, 0, None)], {}),
    "plain": ([(0, -1, 1, 0, 17), (1, -1, 0, 1, 17), (2, -1, 1, 0, 9), (3, -1, 0, 1, 9), (4, -1, 1, 0, None)], {}),
    "residual": (
        [(0, -1, 1, 0, 13), (1, -1, 0, 1, 13), (2, -1, 1, 0, 13), (3, 1, 0, 0, 13), (4, -1, 1, 0, None)],
        {3: 1},
    ),
    "sloped sum": (
        [(0, -1, 1, 0, 8), (0, -1, 1, 0, 8), (1, 2, 0, 1, 8), (3, -1, 0, 0, 8), (4, -1, 1, 0, None)],
        {2: 1},
    ),
}


def case(network, batch, variables, count, levels=None, dtype=torch.float64, width=None):
    """Random arguments: variables and units at random levels, and weights that later levels only have."""
    levels = variables if levels is None else levels
    steps, same = NETWORKS[network]
    known = torch.cat([torch.arange(levels), torch.randint(levels, (variables - levels,))]).sort().values
    # The level at which each unit is computed. What reads x at level l sees the variables of the levels before l.
    made = [known + 1]
    weights, slopes, program = [], [], []
    for index, (source, other, weighted, sloped, units) in enumerate(steps, 1):
        units = variables * count if units is None else units if width is None else width
        if index == len(steps):
            made.append(known.repeat_interleave(count))
        elif index in same or not weighted:
            made.append(made[same.get(index, source)])
        else:
            made.append(torch.randint(levels, (units,)).sort().values)
        if weighted:
            mask = made[-1][:, None] >= made[source]
            weights.append(mask * torch.randn(mask.shape, dtype=torch.float64) / max(1, mask.shape[1]) ** 0.5)
        if sloped:
            slopes.append(torch.rand(batch, units, dtype=torch.float64) * 2 - 0.5)
        program += [source, other, weighted, sloped]
    ends = [int((own < bound).sum()) for own in made for bound in range(levels + 1)]
    grad, factors = (torch.randn(batch, size, dtype=torch.float64) for size in (variables, variables * count))
    return moved([grad, factors, weights, slopes, program, ends], "cpu", dtype)


def moved(arguments, device, dtype=None):
    def move(value):
        if isinstance(value, list):
            return [move(own) for own in value]
        return value.to(device, dtype) if isinstance(value, torch.Tensor) else value

    return [move(value) for value in arguments]
