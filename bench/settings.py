"""Sizes and patience of a benchmark run."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Settings:
    """device: where to run. full: more cases. tiny: sizes for the smoke test, which measure nothing.

    seconds: time to spend per contender and case. compile_seconds: longest torch.compile, 0 = leave it out.
    """

    device: torch.device
    full: bool = False
    tiny: bool = False
    seconds: float = 0.5
    compile_seconds: float = 150.0

    @property
    def nade(self) -> tuple[int, int, int]:
        """B, D, H."""
        return (4, 64, 16) if self.tiny else (128, 784, 500)

    @property
    def made(self) -> tuple[int, int, int]:
        """B, D, H of one hidden layer."""
        return (4, 64, 48) if self.tiny else (64, 784, 500)

    @property
    def linear_batches(self) -> tuple[int, ...]:
        return (3,) if self.tiny else (1, 64, 512)

    @property
    def linear_features(self) -> tuple[int, ...]:
        return (16, 40) if self.tiny else (64, 512, 2048, 8000)

    @property
    def linear_layers(self) -> tuple[tuple[int, int, int], ...]:
        """B, I, O."""
        if self.tiny:
            return ((3, 16, 40),)
        return ((512, 784, 8000), (512, 2048, 2048), (512, 8000, 784), (32, 8000, 8000), (64, 64, 64))

    @property
    def linear_large(self) -> tuple[int, int, int]:
        """B, I, O of a product that fills a GPU with large tiles."""
        return (3, 16, 40) if self.tiny else (4096, 8192, 8192)
