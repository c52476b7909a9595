"""Random numbers that depend only on a seed and a counter: they are the same on every machine and device."""

from __future__ import annotations

import torch
from torch import Tensor


def philox_uniform(seed: int, sample: Tensor, variable: Tensor, slot: Tensor | int = 0) -> Tensor:
    """Uniform numbers in (0, 1), float64, of Philox4x32-10 with key ``seed`` and counter (sample, variable, slot).

    ``sample``, ``variable`` and ``slot`` are int64 and broadcast. The numbers equal those of csrc/kernels/philox.h, bit
    for bit.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    word = 0xFFFFFFFF
    key0, key1 = seed & word, (seed >> 32) & word
    slot = torch.as_tensor(slot, device=sample.device)
    sample, variable, slot = torch.broadcast_tensors(sample, variable, slot)
    c0, c1, c2, c3 = sample & word, (sample >> 32) & word, variable & word, slot
    for _ in range(10):
        # int64 products wrap modulo 2^64, which keeps all 64 bits of the unsigned product.
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            ((product1 >> 32) & word) ^ c1 ^ key0,
            product1 & word,
            ((product0 >> 32) & word) ^ c3 ^ key1,
            product0 & word,
        )
        key0, key1 = (key0 + 0x9E3779B9) & word, (key1 + 0xBB67AE85) & word
    return (((c0 << 20) | (c1 >> 12)).double() + 0.5) * 2.0**-52
