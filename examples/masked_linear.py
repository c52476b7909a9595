"""MaskedLinear in place of F.linear(x, weight * mask): an existing layer, its weights and optimizer stay as they are.

Run: python examples/masked_linear.py
"""

import torch
from torch import nn
from torch.nn import functional as F

from ar_fast.nn import MaskedLinear


def main() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(784, 2048)
    degrees = torch.randint(1, 784, (2048, 1))
    mask = torch.arange(1, 785) <= degrees

    # Any bool mask will do; where its rows are nested, as here, the hidden half of the product is skipped.
    layer = MaskedLinear.from_linear(linear, mask)
    print(layer)

    x = torch.randn(64, 784)
    expected = F.linear(x, linear.weight * mask, linear.bias)
    actual = layer(x)
    print(f"largest difference from F.linear(x, weight * mask): {(actual - expected).abs().max():.1e}")

    actual.square().mean().backward()
    print(f"largest gradient of a masked weight: {linear.weight.grad[~mask].abs().max():.1f}")


if __name__ == "__main__":
    main()
