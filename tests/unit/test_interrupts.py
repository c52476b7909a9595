"""Ctrl-C ends every long call with a KeyboardInterrupt, within a second of the processor's time.

Each call runs in a fork of one thread, which is interrupted in the middle. The time is that of the fork's processor, so
that a busy machine changes nothing; what would hang is killed.
"""

import os
import select
import signal
import time
from pathlib import Path

import pytest
import torch

from ar_fast import _library, compression, flows, heads, models
from ar_fast.cli.__main__ import main
from ar_fast.tasks import completion, training

FIXED_SEED = 0
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/stat").exists(), reason="needs fork and /proc"),
    pytest.mark.skipif(_library.backend == "reference", reason="about the compiled ops"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
#: Seconds of the processor from the signal to the exception.
MOST = 1.0
IMAGE = (28, 28)
MODELS = {
    "NADE": lambda: models.NADE(IMAGE, 500),
    "RNADE": lambda: models.RNADE(IMAGE, 300, components=10),
    "Categorical": lambda: models.NADE(IMAGE, 300, head=heads.Categorical(256)),
    "DeepNADE": lambda: models.DeepNADE(IMAGE, [500, 500]),
    "OffsetNADE": lambda: models.OffsetNADE((256, 256), 100, 5),
    "ARMLP": lambda: models.ARMLP(IMAGE, 20),
    "FVSBN": lambda: models.FVSBN((64, 64)),
    "MADE": lambda: models.MADE(IMAGE, [1000, 1000]),
    "MADE-masks": lambda: models.MADE(IMAGE, [500], degrees="random", n_masks=8, n_orders=8).ensemble(),
    "RNN": lambda: models.RNN(IMAGE, 200, "lstm", 2),
    "Ensemble": lambda: models.Ensemble(
        [models.NADE(IMAGE, 500), models.NADE(IMAGE, 500).in_order(range(783, -1, -1))]
    ),
}


def sample(name):
    model = MODELS[name]()
    # An ensemble's result is there from the beginning.
    n = {"OffsetNADE": 200, "Ensemble": 100_000, "MADE-masks": 100_000}.get(name, 1_000_000)
    return lambda: model.sample(n, seed=0)


def log_likelihoods(name):
    model = MODELS[name]()
    rows = torch.zeros(1, *model.event_shape).expand(3_000_000, *model.event_shape)
    return lambda: training.log_likelihoods(model, rows)


#: Models whose evaluation takes long beside the size of the events, and how many of these.
LARGE = {
    "NADE": (lambda: models.NADE(IMAGE, 4000), 20_000),
    "RNADE": (lambda: models.RNADE(IMAGE, 1000, components=10), 20_000),
    "DeepNADE": (lambda: models.DeepNADE(IMAGE, [500, 500]), 20_000),
    "OffsetNADE": (lambda: models.OffsetNADE((256, 256), 100, 5), 200),
    "ARMLP": (lambda: models.ARMLP(IMAGE, 200), 20_000),
    "FVSBN": (lambda: models.FVSBN((100, 100)), 2000),
    "MADE": (lambda: models.MADE(IMAGE, [4000, 4000]), 20_000),
    "RNN": (lambda: models.RNN(IMAGE, 200, "lstm", 2), 20_000),
    "MAF": (lambda: flows.MAF(784, transforms=10, hidden_features=(2000, 2000)), 20_000),
    "MAF-context": (lambda: flows.MAF(784, 3, transforms=10, hidden_features=(2000, 2000)), 20_000),
}


def log_prob(name):
    make, n = LARGE[name]
    model = make().requires_grad_(False)
    if name == "MAF-context":
        return lambda: model.log_prob(torch.zeros(n, 784), torch.zeros(n, 3))
    return lambda: model.log_prob(torch.zeros(n, *model.event_shape))


def text_model():
    return models.CharRNN("abcdefgh", 512, "lstm", 2)


def char_rnn_sample(n):
    model = text_model()
    return lambda: model.sample(n, 3_000_000 // n, seed=0)


def train():
    model = models.NADE(IMAGE, 500)
    events = torch.rand(2000, *IMAGE).lt(0.5).float()
    split = training.Split(events, events, events)
    return lambda: training.train(model, split, training.Settings(epochs=1000), progress=False)


def train_text():
    model = text_model()
    text = training.Text.split(torch.randint(0, 8, (1_000_000,)))
    return lambda: training.train(model, text, training.Settings(epochs=1000), progress=False)


def complete():
    model = models.NADE(IMAGE, 500)
    known = torch.zeros(IMAGE, dtype=torch.bool)
    known[20:] = True
    return lambda: completion.complete(model, torch.zeros(IMAGE), known, 1000, particles=50_000, seed=0)


def compress():
    model = models.NADE(IMAGE, 500)
    rows = torch.zeros(1, *IMAGE, dtype=torch.uint8).expand(30_000, *IMAGE)
    return lambda: compression.compress(model, rows)


def compress_text():
    model = text_model()
    return lambda: compression.compress(model, torch.zeros(10_000_000, dtype=torch.int64))


def flow(inverse, univariate):
    own = flows.MAF(784, transforms=10, hidden_features=(500, 500), inverse=inverse, univariate=univariate)
    return lambda: own.sample(30_000, seed=0)


def generate(folder):
    text_model().save(folder / "model")
    return lambda: main(["generate", str(folder / "model"), "--length", "1000000"], prog_name="ar-fast")


CALLS = {
    **{f"sample-{name}": lambda _, name=name: sample(name) for name in MODELS},
    **{f"log_likelihoods-{name}": lambda _, name=name: log_likelihoods(name) for name in MODELS},
    **{f"log_prob-{name}": lambda _, name=name: log_prob(name) for name in LARGE},
    "sample-CharRNN": lambda _: char_rnn_sample(1),
    "sample-CharRNN-rows": lambda _: char_rnn_sample(1000),
    "train": lambda _: train(),
    "train-text": lambda _: train_text(),
    "complete": lambda _: complete(),
    "compress": lambda _: compress(),
    "compress-text": lambda _: compress_text(),
    "sample-MAF": lambda _: flow(False, "affine"),
    "sample-MAF-spline": lambda _: flow(False, "spline"),
    "sample-IAF": lambda _: flow(True, "affine"),
    "generate": generate,
}
#: Those of the fast suite.
FEW = ("sample-NADE", "sample-CharRNN", "train", "generate")


def seconds_of(process):
    """User and system time."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else pytest.mark.full) for name in CALLS])
def test_a_long_call_is_interrupted(name, tmp_path):
    call = CALLS[name](tmp_path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = b"failed"
        try:
            torch.set_num_threads(1)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.write(writer, b"begun\n")
            call()
            said = b"finished"
        except KeyboardInterrupt:
            said = b"interrupted"
        except SystemExit as status:
            # The command line says so by its status.
            said = b"interrupted" if status.code in (1, 130) else b"exited %d" % status.code
        finally:
            os.write(writer, b"%s %f\n" % (said, time.process_time()))
            os._exit(0)
    os.close(writer)
    try:
        with os.fdopen(reader) as lines:
            assert lines.readline() == "begun\n"
            # In the middle of it, whatever else the machine does.
            begun, deadline = seconds_of(child), time.monotonic() + 60
            while seconds_of(child) < begun + 0.7 and time.monotonic() < deadline:
                assert not select.select([reader], [], [], 0.02)[0], f"too short: {lines.readline()}"
            before = seconds_of(child)
            os.kill(child, signal.SIGINT)
            assert select.select([reader], [], [], 60)[0], "it goes on"
            said, after = lines.readline().split()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(f"{name}: {float(after) - before:.2f} s")
    assert said == "interrupted"
    assert float(after) - before < MOST, f"it took {float(after) - before:.1f} s of the processor"
