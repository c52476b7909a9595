"""ar_fast.training in two processes, over gloo: what one process computes, within rounding."""

import copy
import queue

import pytest
import torch
import torch.multiprocessing
from torch import distributed

from ar_fast import heads, models
from ar_fast.nn import NegativeLogLikelihood
from ar_fast.tasks.distributed import joined, share
from ar_fast.training import Checkpoint, Settings, Split, Text, log_likelihoods, train

EVENTS = (torch.rand(53, 6, generator=torch.Generator().manual_seed(0)) < 0.4).double().cumsum(1) % 2
TEXT = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(1)).cumsum(0) % 4
ARRAYS = Split(EVENTS[:33], EVENTS[33:42], EVENTS[42:])
# 33 events in batches of 8: the last one has a single event, and one process has none of it.
SETTINGS = Settings(epochs=4, batch_size=8, learning_rate=0.02, average=0.9, clip=1.0)


def nade():
    return models.NADE(6, 5, dtype=torch.float64)


def made_with_masks():
    return models.MADE(6, [8], "tanh", degrees="random", n_masks=3, n_orders=2, dtype=torch.float64)


def categories():
    return models.RNN(6, 4, head=heads.Categorical(2), dtype=torch.float64)


def char_rnn():
    return models.CharRNN("abcd", 5, "lstm", 2, dtype=torch.float64)


CASES = {make.__name__: make for make in (nade, made_with_masks, categories, char_rnn)}


def data_of(name):
    return Text(TEXT[:300], TEXT[300:350], TEXT[350:], chunk=7) if name == "char_rnn" else ARRAYS


def made(name):
    torch.manual_seed(0)
    return CASES[name]()


class Stops(Checkpoint):
    """Ctrl-C in the second process, after so many steps; the first one learns of it."""

    left = 7

    @property
    def due(self):
        self.left -= 1
        if distributed.get_rank() == 1 and self.left == 0:
            self.stop = True
        return self.stop


def run(rank, folder, results):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    try:
        for name in CASES:
            model = made(name)
            history = train(model, data_of(name), SETTINGS, progress=False).history
            results.put((rank, name, flat(model), history))
            # Stopped in the middle of an epoch, and gone on with.
            model, path = made(name), folder / f"{name}.safetensors"
            with pytest.raises(KeyboardInterrupt):
                train(model, data_of(name), SETTINGS, progress=False, checkpoint=Stops(path, 1e9))
            assert path.is_file()
            model = made(name)
            train(model, data_of(name), SETTINGS, progress=False, checkpoint=Checkpoint(path, 1e9))
            results.put((rank, f"{name} resumed", flat(model), None))
        model = made("nade")
        results.put((rank, "log_likelihoods", log_likelihoods(model, EVENTS, 4).tolist(), None))
        part = share(11)
        drawn = model.sample(part.stop - part.start, seed=3, first_index=part.start)
        results.put((rank, "samples", joined(drawn, 11).tolist(), None))
        results.put((rank, "columns", joined(torch.arange(11)[part].expand(2, -1), 11, 1).tolist(), None))
    except BaseException as error:
        results.put((rank, "error", repr(error), None))
        raise
    distributed.barrier()
    distributed.destroy_process_group()


def flat(model):
    return torch.cat([tensor.flatten().double() for tensor in model.parameters()]).tolist()


def close(found, expected):
    found, expected = (torch.tensor(each, dtype=torch.float64) for each in (found, expected))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_two_ranks_train_as_one_process(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=run, args=(rank, tmp_path, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found, histories = {}, {}
    try:
        while len(found) < 2 * (2 * len(CASES) + 3):
            rank, name, values, history = results.get(timeout=300)
            assert name != "error", values
            found[name, rank], histories[name, rank] = values, history
    except queue.Empty:
        pytest.fail(f"the processes stopped after {sorted(found)}")
    finally:
        for worker in workers:
            worker.join(60)
            worker.kill()
    for name in CASES:
        model = made(name)
        before = flat(model)
        history = train(model, data_of(name), SETTINGS, progress=False).history
        assert flat(model) != before and len(history) == 4
        for rank in range(2):
            close(found[name, rank], flat(model))
            assert found[f"{name} resumed", rank] == found[name, rank]
            for own, single in zip(histories[name, rank], history, strict=True):
                close([own["train"], own["validation"]], [single["train"], single["validation"]])
    model = made("nade")
    for rank in range(2):
        close(found["log_likelihoods", rank], model.log_prob(EVENTS).tolist())
        assert found["samples", rank] == model.sample(11, seed=3).tolist()
        assert found["columns", rank] == [list(range(11))] * 2


def test_the_loss_of_a_model_is_a_module():
    model, x = made("nade"), EVENTS[:5]
    nats = -model.log_prob(x)
    assert torch.equal(NegativeLogLikelihood(model)(x), nats.mean())
    assert torch.equal(NegativeLogLikelihood(model, "sum")(x), nats.sum())
    assert torch.equal(NegativeLogLikelihood(model, "none")(x), nats)
    assert list(NegativeLogLikelihood(model).parameters()) == list(model.parameters())
    with pytest.raises(ValueError, match="reduction must be mean, sum or none, got 'max'"):
        NegativeLogLikelihood(model, "max")


def test_the_loss_of_a_model_that_has_its_own():
    torch.manual_seed(0)
    model = models.DeepNADE(6, [5], dtype=torch.float64)
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    found = NegativeLogLikelihood(model)(EVENTS, generator=generators[0])
    assert torch.equal(found, model.loss(EVENTS, generator=generators[1]).mean())


def test_the_loss_of_a_model_that_returns_a_state():
    model = made("char_rnn")
    rows = TEXT[:12].reshape(2, 6)
    loss, state = NegativeLogLikelihood(model)(rows, return_state=True)
    log_prob, expected = model.log_prob(rows, return_state=True)
    assert torch.equal(loss, -log_prob.mean()) and torch.equal(state.state, expected.state)
    again, _ = NegativeLogLikelihood(copy.deepcopy(model))(rows, state=state, return_state=True)
    assert not torch.equal(again, loss)
