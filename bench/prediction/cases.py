"""The reference cases whose time is predicted: those that have a goal (goals.json), and further ones of bench."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """kind: which kernels (kernels.KINDS). ones: the part of inputs, or of draws, that is not zero.

    layers: widths of a masked network or layer, inputs first; of a recurrent model the outputs. steps: how many steps
    a launch has, if the time is that of one.
    """

    name: str
    kind: str = ""
    batch: int = 0
    variables: int = 0
    hidden: int = 0
    ones: float = 1.0
    layers: tuple[int, ...] = ()
    dtype: str = "float32"
    steps: int = 1


def _nade(name: str, kind: str, sizes: tuple[int, int, int], ones: float = 1.0) -> Case:
    variables, hidden, batch = sizes
    return Case(name, kind, batch, variables, hidden, ones)


def _linear(name: str, batch: int, inputs: int, outputs: int, dtype: str = "float32") -> Case:
    return Case(name, "masked_linear", batch, layers=(inputs, outputs), dtype=dtype)


def _rnn(dtype: str) -> Case:
    """A GRU of one layer over 65 symbols."""
    name = f"rnn_sample gru 512 B16 vocabulary 65 {dtype}, a step"
    return Case(name, "rnn_sample", 16, hidden=512, layers=(65,), dtype=dtype, steps=500)


MNIST = (784, 500, 128)
DIGITS = 0.13  # ones of a binarized digit
CASES = [
    _nade("nade forward 784/500/128 dense float32", "nade forward", MNIST),
    _nade("nade forward 784/500/128 digits float32", "nade forward", MNIST, DIGITS),
    _nade("nade forward+backward 784/500/128 dense float32", "nade forward+backward", MNIST),
    _nade("nade forward+backward 784/500/128 digits float32", "nade forward+backward", MNIST, DIGITS),
    _nade("nade forward 196608/512/16 dense float32", "nade forward", (196608, 512, 16)),
    _nade("nade sampling 784/500/128 float32", "nade sampling", MNIST, 0.5),
    Case("made sampling 784-8000-8000-784 B128 float32", "made sampling", 128, 784, layers=(784, 8000, 8000, 784)),
    _linear("masked_linear 8192x8192 B4096 bfloat16", 4096, 8192, 8192, "bfloat16"),
    _linear("masked_linear 784->8000 B128 float32", 128, 784, 8000),
    _linear("masked_linear 8000x8000 B32 float32", 32, 8000, 8000),
    _linear("masked_linear 8000x8000 B1 float32", 1, 8000, 8000),
    _rnn("bfloat16"),
    _rnn("float32"),
    # Of bench, without a goal.
    _nade("nade sampling 784/500/128 output biases of digits float32", "nade sampling", MNIST, DIGITS),
    Case("made sampling 784-500-784 B64 float32", "made sampling", 64, 784, layers=(784, 500, 784)),
    _linear("masked_linear 784->8000 B512 float32", 512, 784, 8000),
    _linear("masked_linear 2048x2048 B512 float32", 512, 2048, 2048),
    _linear("masked_linear 8000->784 B512 float32", 512, 8000, 784),
    _linear("masked_linear 64x64 B64 float32", 64, 64, 64),
]
