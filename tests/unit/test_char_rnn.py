"""CharRNN: against torch.nn and the reference, lengths, prompts, stops, states carried on, files, and errors."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from model_cases import bit_for_bit
from rnn_model_cases import STACKS, SYMBOLS, make_char_rnn, random_tokens, reference_of
from torch import nn

from ar_fast import models

FIXED_SEED = 0
pytestmark = pytest.mark.heavy
EVERY_STACK = pytest.mark.parametrize(("cell", "num_layers"), STACKS)
# Those that the reference has.
STACKS_OF_REFERENCE = [stack for stack in STACKS if stack[0] != "rnn_relu"]


# Evaluation.


@pytest.mark.parametrize("embedding_features", [None, 3])
@pytest.mark.parametrize(("cell", "num_layers"), STACKS_OF_REFERENCE)
def test_model_and_reference_agree(cell, num_layers, embedding_features):
    model = make_char_rnn(cell, num_layers, embedding_features=embedding_features)
    plain = reference_of(model)
    tokens = random_tokens(3, 9)
    terms = model.log_prob(tokens, per_token=True)
    torch.testing.assert_close(terms, torch.stack([plain.log_prob(row) for row in tokens]))
    torch.testing.assert_close(model.log_prob(tokens), terms.sum(1))
    torch.testing.assert_close(model(tokens).log_softmax(-1).gather(-1, tokens[..., None])[..., 0], terms)
    model.log_prob(tokens).sum().backward()
    sum(plain.log_prob(row).sum() for row in tokens).backward()
    wanted = dict(plain.named_parameters())
    assert wanted.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad)


@EVERY_STACK
def test_it_is_torchs_module(cell, num_layers):
    """One cell after another, and all at once; the weights go there and back as they are."""
    model = make_char_rnn(cell, num_layers, embedding_features=3)
    rnn, readout, embedding = model.to_torch()
    tokens = random_tokens(4, 6)
    inputs = torch.cat([torch.zeros(4, 1, 3, dtype=torch.float64), embedding(tokens[:, :-1])], 1)
    wanted = readout(rnn(inputs)[0])
    torch.testing.assert_close(model(tokens), wanted, rtol=1e-12, atol=1e-12)
    cells = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "rnn": nn.RNNCell, "rnn_relu": nn.RNNCell}
    options = {"nonlinearity": "relu"} if cell == "rnn_relu" else {}
    states, x = model.rnn.zero_states(inputs, (4,)), inputs[:, 0]
    after = model.rnn.step(x, states)
    for layer in range(num_layers):
        one = cells[cell](x.shape[1], 7, dtype=torch.float64, **options)
        one.load_state_dict({name: getattr(rnn, f"{name}_l{layer}") for name in one.state_dict()})
        x = one(x)
        x = x[0] if cell == "lstm" else x
        torch.testing.assert_close(after[0][layer], x, rtol=1e-12, atol=1e-12)
    again = models.CharRNN.from_torch(rnn, readout, embedding, vocabulary=SYMBOLS)
    assert torch.equal(again.log_prob(tokens), model.log_prob(tokens))
    assert again.rnn.weight_hh_l0 is rnn.weight_hh_l0 is model.rnn.weight_hh_l0
    assert type(rnn) in (nn.GRU, nn.LSTM, nn.RNN) and again.config() == model.config()
    assert [name for name, _ in rnn.named_parameters()] == [name for name, _ in model.rnn.named_parameters()]


def test_from_torch_without_embedding_or_names():
    rnn, readout = nn.LSTM(4, 6, 2, dropout=0.25), nn.Linear(6, 4)
    model = models.CharRNN.from_torch(rnn, readout)
    assert model.vocabulary.symbols == ["0", "1", "2", "3"] and model.rnn.dropout == 0.25
    model.log_prob(random_tokens(2, 5, symbols=4)).sum().backward()
    assert bool(rnn.weight_ih_l0.grad.any()) and bool(readout.bias.grad.any())
    for bad, message in (
        ((nn.GRU(4, 6, bidirectional=True), readout), "rnn must not be bidirectional"),
        ((nn.LSTM(4, 6, proj_size=3), readout), "rnn must have proj_size 0, got 3"),
        ((nn.GRU(4, 6, bias=False), readout), "rnn must have biases"),
        ((nn.GRUCell(4, 6), readout), "rnn must be a torch.nn.GRU, LSTM or RNN, got GRUCell"),
        ((nn.GRU(4, 6), nn.Linear(5, 4)), "readout must be a torch.nn.Linear of 6 features"),
        ((nn.GRU(4, 6), nn.Linear(6, 4, bias=False)), "readout must be .* with a bias"),
        ((nn.GRU(3, 6), readout), "embedding must be one of 4 symbols with 3 features"),
        ((nn.GRU(3, 6), readout, nn.Embedding(5, 3)), "embedding must be one of 4 symbols with 3 features"),
        ((nn.GRU(3, 6), readout, nn.Embedding(4, 3, max_norm=1.0)), "embedding must be .* without max_norm"),
        ((nn.GRU(4, 6).double(), readout), "parameters must be of one dtype"),
    ):
        with pytest.raises(ValueError, match=f"CharRNN: {message}"):
            models.CharRNN.from_torch(*bad)
    with pytest.raises(ValueError, match="vocabulary must have 4 symbols, got 3"):
        models.CharRNN.from_torch(rnn, readout, vocabulary="abc")


@pytest.mark.parametrize(("cell", "num_layers"), [("gru", 1), ("lstm", 2)])
def test_probabilities_of_all_sequences_sum_to_one(cell, num_layers):
    model = make_char_rnn(cell, num_layers, vocabulary="abc")
    every = torch.cartesian_prod(*[torch.arange(3)] * 5)
    assert abs(model.log_prob(every).exp().sum().item() - 1) < 1e-12


def test_a_token_changes_what_comes_after_it_only():
    model, tokens = make_char_rnn("gru", 2), random_tokens(8)
    for position in range(8):
        changed = tokens.clone()
        changed[position] = (changed[position] + 1) % len(SYMBOLS)
        differs = (model(changed) != model(tokens)).any(-1)
        assert differs.tolist() == [at > position for at in range(8)]


@EVERY_STACK
def test_lengths_are_those_of_single_sequences(cell, num_layers):
    model = make_char_rnn(cell, num_layers)
    tokens, lengths = random_tokens(6, 7), torch.tensor([3, 0, 7, 1, 3, 6])
    beyond = torch.arange(7) >= lengths[:, None]
    padded = tokens.masked_fill(beyond, -100)
    terms, state = model.log_prob(padded, lengths, per_token=True, return_state=True)
    assert bool((terms[beyond] == 0).all()) and bool((terms[~beyond] < 0).all())
    torch.testing.assert_close(model.log_prob(padded, lengths), terms.sum(1))
    assert torch.equal(state.position, lengths)
    gradients = torch.autograd.grad(terms.sum(), list(model.parameters()))
    single = []
    for row, length in enumerate(lengths.tolist()):
        own, after = model.log_prob(tokens[row, :length], per_token=True, return_state=True)
        torch.testing.assert_close(terms[row, :length], own)
        torch.testing.assert_close(state.state[:, row], after.state[:, 0])
        if cell == "lstm":
            torch.testing.assert_close(state.cell_state[:, row], after.cell_state[:, 0])
        assert state.last[row] == after.last[0] == (tokens[row, length - 1] if length else -1)
        single.append(own.sum())
    for got, wanted in zip(gradients, torch.autograd.grad(sum(single), list(model.parameters())), strict=True):
        torch.testing.assert_close(got, wanted)


@EVERY_STACK
def test_a_carried_state_goes_on(cell, num_layers):
    model = make_char_rnn(cell, num_layers)
    tokens, lengths = random_tokens(4, 11), torch.tensor([11, 4, 0, 6])
    whole = model.log_prob(tokens, lengths, per_token=True)
    state, parts = None, []
    for start in (0, 3, 4, 9):
        piece = tokens[:, start : {0: 3, 3: 4, 4: 9, 9: 11}[start]]
        own = (lengths - start).clamp(0, piece.shape[1])
        terms, state = model.log_prob(piece, own, state=state, per_token=True, return_state=True)
        parts.append(terms)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert torch.equal(state.position, lengths)
    # Without detach the gradient is the whole one; with it, backpropagation is truncated.
    names = list(model.parameters())
    wanted = torch.autograd.grad(model.log_prob(tokens).sum(), names)
    for truncated in (False, True):
        first, state = model.log_prob(tokens[:, :5], return_state=True)
        second = model.log_prob(tokens[:, 5:], state=state.detach() if truncated else state)
        got = torch.autograd.grad((first + second).sum(), names)
        equal = [torch.allclose(a, b) for a, b in zip(got, wanted, strict=True)]
        assert all(equal) != truncated


def test_perplexity_and_bits_per_character(monkeypatch):
    model = make_char_rnn()
    tokens, lengths = random_tokens(3, 10), torch.tensor([10, 0, 7])
    nats = -model.log_prob(tokens, lengths).sum().item()
    assert model.perplexity(tokens, lengths) == pytest.approx(math.exp(nats / 17))
    assert model.bits_per_character(tokens, lengths) == pytest.approx(nats / 17 / math.log(2))
    monkeypatch.setattr("ar_fast.models.char_rnn._MEASURED_TOKENS", 9)
    assert model.perplexity(tokens, lengths) == pytest.approx(math.exp(nats / 17))
    assert model.perplexity(tokens[0]) == pytest.approx(math.exp(-model.log_prob(tokens[0]).item() / 10))
    with pytest.raises(ValueError, match="tokens must have one that counts at least, got none"):
        model.perplexity(tokens, lengths * 0)
    of_bytes = make_char_rnn(vocabulary="bytes")
    text = "naïve: 10 €"
    nats = -of_bytes.log_prob(of_bytes.encode(text)).item()
    assert of_bytes.bits_per_character(of_bytes.encode(text)) == pytest.approx(nats / len(text) / math.log(2))


def test_nothing_to_evaluate():
    model = make_char_rnn("lstm", 2)
    for shape in ((0, 4), (3, 0), (0, 0), (0,), (2, 0, 3)):
        tokens = torch.zeros(shape, dtype=torch.int64)
        for lengths in (None, torch.zeros(shape[:-1], dtype=torch.int64)):
            log_prob, state = model.log_prob(tokens, lengths, return_state=True)
            assert log_prob.shape == shape[:-1] and not log_prob.any()
            assert model.log_prob(tokens, lengths, per_token=True).shape == shape
            assert len(state.last) == math.prod(shape[:-1]) and bool((state.last == -1).all())
            log_prob.sum().backward()
            assert not model.readout.weight.grad.any()
    assert model(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, len(SYMBOLS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    model = make_char_rnn(dtype=dtype, embedding_features=4)
    exact = make_char_rnn(embedding_features=4)
    exact.load_state_dict(model.state_dict())
    tokens = random_tokens(2, 30)
    log_prob = model.log_prob(tokens)
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob.double(), exact.log_prob(tokens), rtol=1e-5, atol=1e-5)
    for integers in (torch.uint8, torch.int32, torch.int16):
        assert torch.equal(model.log_prob(tokens.to(integers)), log_prob)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.log_prob(tokens).dtype == torch.float32
    drawn, lengths, of_drawn = model.sample(2, 9, seed=0, return_log_prob=True)
    torch.testing.assert_close(of_drawn, model.log_prob(drawn), rtol=1e-4, atol=1e-4)
    assert lengths.tolist() == [9, 9]


@pytest.mark.parametrize("cell", ["gru", pytest.param("lstm", marks=pytest.mark.full)])
def test_compiles_without_graph_breaks(cell):
    model, tokens, lengths = make_char_rnn(cell), random_tokens(3, 6), torch.tensor([6, 2, 0])
    torch.compiler.reset()
    compiled = torch.compile(lambda *given: model.log_prob(*given), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens, lengths), model.log_prob(tokens, lengths))


@pytest.mark.parametrize("options", [{"num_layers": 2, "dropout": 0.5}, {"readout_dropout": 0.5}], ids=str)
def test_dropout_is_of_training_only(options):
    model, tokens = make_char_rnn("gru", **options), random_tokens(2, 9)
    assert not torch.equal(model.log_prob(tokens), model.log_prob(tokens))
    model.eval()
    assert torch.equal(model.log_prob(tokens), model.log_prob(tokens))
    plain = make_char_rnn("gru", model.rnn.num_layers)
    torch.testing.assert_close(model.log_prob(tokens), plain.log_prob(tokens))
    assert torch.equal(model.sample(2, 9, seed=0)[0], model.train().sample(2, 9, seed=0)[0])


# Sampling.


@pytest.mark.parametrize(
    "draws", [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.6}, {"temperature": 2.0, "top_k": 3, "top_p": 0.7}]
)
@pytest.mark.parametrize(("cell", "num_layers"), STACKS_OF_REFERENCE)
def test_samples_are_the_references(cell, num_layers, draws):
    model = make_char_rnn(cell, num_layers)
    prompt, prompt_lengths = random_tokens(5, 4, seed=2), torch.tensor([4, 0, 2, 1, 4])
    tokens, lengths, log_prob = model.sample(
        5, 12, prompt=prompt, prompt_lengths=prompt_lengths, stop="c", seed=3, first_index=7, return_log_prob=True,
        **draws,
    )  # fmt: skip
    assert len(set(lengths.tolist())) > 1, "some stop early"
    plain = reference_of(model)
    for row in range(5):
        own = prompt[row, : prompt_lengths[row]]
        wanted = plain.sample(own, 12, 7 + row, 3, stop=2, **{"temperature": 1.0} | draws)
        assert tokens[row, : lengths[row]].tolist() == wanted.tolist()
        assert bool((tokens[row, lengths[row] :] == 2).all())
        terms = model.log_prob(torch.cat([own, wanted]), per_token=True)[len(own) :]
        torch.testing.assert_close(log_prob[row], terms.sum())


@bit_for_bit
@EVERY_STACK
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_sample_goes_on_from_its_state(cell, num_layers, dtype):
    model = make_char_rnn(cell, num_layers, dtype=dtype)
    prompt, prompt_lengths = random_tokens(4, 3), torch.tensor([3, 0, 1, 3])
    prompted = {"prompt": prompt, "prompt_lengths": prompt_lengths}
    for begins_with, stop in (({}, None), (prompted, None), (prompted, "e")):
        options = {"stop": stop, "temperature": 1.3, "return_state": True}
        whole, lengths, end = model.sample(4, 50, seed=5, first_index=2, **begins_with, **options)
        first, some, state = model.sample(4, 20, seed=5, first_index=2, **begins_with, **options)
        rest, others, after = model.sample(4, 30, state=state, **options)
        assert torch.equal(torch.cat([first, rest], 1), whole) and torch.equal(some + others, lengths)
        for field in dataclasses.fields(models.CharState):
            got, wanted = getattr(after, field.name), getattr(end, field.name)
            assert torch.equal(got, wanted) if isinstance(got, torch.Tensor) else got == wanted, field.name
        assert bool(end.finished.any()) == (stop is not None)


@bit_for_bit
def test_rows_do_not_depend_on_the_batch():
    model = make_char_rnn("lstm", 2, dtype=torch.float32)
    prompt, lengths = random_tokens(9, 5), torch.tensor([5, 0, 2, 5, 1, 0, 4, 3, 5])
    options = {"seed": 1, "return_log_prob": True}
    whole = model.sample(9, 20, prompt=prompt, prompt_lengths=lengths, **options)
    for row in (0, 1, 4):
        own = prompt[row, : lengths[row]]
        one = model.sample(1, 20, prompt=own, first_index=row, **options)
        for of_one, of_whole in zip(one, whole, strict=True):
            assert torch.equal(of_one[0], of_whole[row])
    some = model.sample(4, 20, prompt=prompt[3:7], prompt_lengths=lengths[3:7], first_index=3, **options)
    assert torch.equal(some[0], whole[0][3:7]) and torch.equal(some[2], whole[2][3:7])


@bit_for_bit
def test_a_prompt_is_what_stepping_over_it_is():
    """In one call or in several, before or after draws."""
    model = make_char_rnn("gru", 2, dtype=torch.float32)
    whole, _, end = model.sample(2, 8, prompt="abcab", seed=4, return_state=True)
    _, none, state = model.sample(2, 0, prompt="abc", seed=4, return_state=True)
    assert none.tolist() == [0, 0] and state.position.tolist() == [3, 3]
    tokens, _, after = model.sample(2, 8, prompt="ab", state=state, return_state=True)
    assert torch.equal(tokens, whole) and torch.equal(after.state, end.state)
    # Sequences at different positions go on together.
    both = random_tokens(2, 4)
    _, _, state = model.sample(2, 3, prompt=both, prompt_lengths=torch.tensor([4, 1]), seed=4, return_state=True)
    together, _ = model.sample(2, 6, prompt="cd", state=state)
    for row, length in enumerate((4, 1)):
        _, _, own = model.sample(1, 3, prompt=both[row, :length], seed=4, first_index=row, return_state=True)
        assert torch.equal(model.sample(1, 6, prompt="cd", state=own)[0][0], together[row])


def test_a_state_of_log_prob_is_gone_on_from():
    model = make_char_rnn("lstm", 2)
    text = random_tokens(3, 6)
    _, state = model.log_prob(text, torch.tensor([6, 2, 0]), return_state=True)
    got = model.sample(3, 9, seed=2, state=state)
    wanted = model.sample(3, 9, seed=2, prompt=text, prompt_lengths=torch.tensor([6, 2, 0]))
    assert torch.equal(got[0], wanted[0])


def test_an_interrupted_sampling_goes_on(monkeypatch):
    model = make_char_rnn()
    whole = model.sample(3, 15, prompt="ab", stop="e", seed=1, return_log_prob=True, return_state=True)
    sampling = model.sampling(3, 15, prompt="ab", stop="e", seed=1)
    assert sampling.lengths.tolist() == [0, 0, 0] and sampling.positions == 17
    sampling.advance(5)
    before, step = sampling.tokens.clone(), sampling._step

    def interrupted(*arguments, **options):
        step(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sampling.advance(5)
    assert sampling.position == 5 and torch.equal(sampling.tokens, before)
    assert bool((sampling.lengths <= 3).all())
    sampling.advance()
    assert sampling.done and torch.equal(sampling.tokens, whole[0]) and torch.equal(sampling.lengths, whole[1])
    torch.testing.assert_close(sampling.log_prob, whole[2])
    assert torch.equal(sampling.state.state, whole[3].state)
    with pytest.raises(ValueError, match="positions must be an integer >= 0 or None, got -1"):
        sampling.advance(-1)


def test_stop_and_prompt_edge_cases():
    model = make_char_rnn()
    tokens, lengths, log_prob, state = model.sample(
        0, 5, prompt="ab", seed=0, return_log_prob=True, return_state=True
    )  # fmt: skip
    assert tokens.shape == (0, 5) and lengths.shape == log_prob.shape == state.last.shape == (0,)
    tokens, lengths, log_prob, state = model.sample(3, 0, seed=0, return_log_prob=True, return_state=True)
    assert tokens.shape == (3, 0) and lengths.tolist() == [0, 0, 0] and not log_prob.any()
    assert state.last.tolist() == [-1, -1, -1] and not state.finished.any()
    # A stop token in the prompt stops nothing.
    tokens, lengths = model.sample(40, 9, prompt="ee", stop="e", seed=0)
    assert lengths.min() >= 1 and lengths.max() > 1
    # What stops is the first one drawn.
    for row, length in zip(tokens, lengths.tolist(), strict=True):
        assert (row[: length - 1] != 4).all() and (length == 9 or bool((row[length - 1 :] == 4).all()))
    assert torch.equal(tokens, model.sample(40, 9, prompt="ee", stop=4, seed=0)[0])
    assert torch.equal(tokens, model.sample(40, 9, prompt=["e", "e"], stop="e", seed=0)[0])
    # A finished sequence stays as it is.
    *_, state = model.sample(40, 9, prompt="ee", stop="e", seed=0, return_state=True)
    more, lengths, after = model.sample(40, 3, prompt="ab", stop="e", state=state, return_state=True)
    assert bool((lengths[state.finished] == 0).all()) and bool((more[state.finished] == 4).all())
    assert torch.equal(after.state[:, state.finished], state.state[:, state.finished])
    assert torch.equal(after.position[state.finished], state.position[state.finished])
    # The likeliest symbol only.
    drawn, _ = model.sample(2, 6, top_k=1, seed=0)
    likeliest, text = [], torch.zeros(0, dtype=torch.int64)
    for _ in range(6):
        likeliest.append(int(model(torch.cat([text, text.new_zeros(1)]))[-1].argmax()))
        text = torch.tensor(likeliest)
    assert drawn.tolist() == [likeliest] * 2


def test_seeds_and_generators():
    model = make_char_rnn()
    torch.manual_seed(4)
    first, second = model.sample(20, 9)[0], model.sample(20, 9)[0]
    torch.manual_seed(4)
    assert torch.equal(model.sample(20, 9)[0], first) and not torch.equal(first, second)
    before = torch.get_rng_state()
    explicit = model.sample(20, 9, seed=8)[0]
    assert torch.equal(torch.get_rng_state(), before), "an explicit seed touches no generator"
    assert torch.equal(explicit[5:], model.sample(15, 9, seed=8, first_index=5)[0])
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(model.sample(20, 9, generator=generator)[0], first)
    *_, state = model.sample(20, 9, seed=8, return_state=True)
    assert state.seed == 8 and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.sample(20, 9, state=state)[0], model.sample(20, 9, state=state, seed=8)[0])
    assert not torch.equal(model.sample(20, 9, state=state)[0], model.sample(20, 9, state=state, seed=9)[0])
    sizes = np.int64(3), np.int64(4)
    numpy = model.sample(*sizes, seed=np.int64(1), first_index=np.int64(2), top_k=np.int64(2), stop=np.int64(1))
    assert torch.equal(numpy[0], model.sample(3, 4, seed=1, first_index=2, top_k=2, stop=1)[0])


def test_progress_shows_on_a_terminal(capsys, monkeypatch):
    model = make_char_rnn()
    model.sample(2, 5, seed=0, progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("ar_fast.models.char_rnn._CALL_MULTIPLY_ADDS", 1)
    model.sample(2, 5, prompt="ab", seed=0, progress=True)
    assert "7.00/7.00" in capsys.readouterr().err


# The vocabulary and files.


def test_a_vocabulary_of_characters_symbols_or_bytes():
    vocabulary = models.Vocabulary("abc é")
    assert len(vocabulary) == 5 and vocabulary.encode("éa c").tolist() == [4, 0, 3, 2]
    assert vocabulary.decode(torch.tensor([4, 0, 3, 2])) == "éa c"
    words = models.Vocabulary(["yes", "no", " "])
    assert words.decode(words.encode(["no", " ", "yes"])) == "no yes"
    every = models.Vocabulary("bytes")
    text = "any text: é€😀\n"
    assert len(every) == 256 and every.encode(text).tolist() == list(text.encode())
    assert every.decode(every.encode(text)) == text and every.encode(b"\xff\x00").tolist() == [255, 0]
    assert every.decode(torch.tensor([0xC3])) == "\ufffd"
    assert int(every.characters(every.encode(text)).sum()) == len(text)
    assert models.Vocabulary(list("bytes")) != every and len(models.Vocabulary(list("bytes"))) == 5
    assert vocabulary.encode("").shape == (0,) and vocabulary.decode(torch.zeros(0, dtype=torch.int64)) == ""
    for bad, message in (
        ("", "must have one symbol at least"),
        ("aba", "must have each symbol once, got 'a' more often"),
        (["a", ""], "must be .* strings that are not empty, got ''"),
        (["a", 3], "must be .* strings that are not empty, got 3"),
    ):
        with pytest.raises(ValueError, match=f"vocabulary {message}"):
            models.Vocabulary(bad)
    with pytest.raises(ValueError, match=r"text must consist of the vocabulary's 5 symbols, got 'x' at position 2"):
        vocabulary.encode("abxc")
    with pytest.raises(ValueError, match="got bytes"):
        vocabulary.encode(b"abc")
    with pytest.raises(ValueError, match=r"tokens must lie in 0 \.\.\. 4, got 5 at index 1"):
        vocabulary.decode(torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="one dimension"):
        vocabulary.decode(torch.zeros(1, 1, dtype=torch.int64))


@pytest.mark.parametrize("vocabulary", ["bytes", SYMBOLS, ["yes", "no", "é"]], ids=str)
def test_save_and_load(vocabulary, tmp_path):
    from safetensors import safe_open

    options = {"embedding_features": 3, "dropout": 0.1, "readout_dropout": 0.2}
    model = make_char_rnn("lstm", 2, vocabulary=vocabulary, **options).eval()
    model.save(tmp_path)
    tokens = random_tokens(2, 6, symbols=len(model.vocabulary))
    loaded = models.load(tmp_path).eval()
    assert loaded.vocabulary == model.vocabulary and loaded.config() == model.config()
    assert torch.equal(loaded.log_prob(tokens), model.log_prob(tokens))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "vocabulary" in file.metadata()
    other = make_char_rnn("lstm", 2, vocabulary=vocabulary, **options)
    other.reset_parameters()
    assert torch.equal(other.load(tmp_path).eval().log_prob(tokens), model.log_prob(tokens))
    names = [f"s{number}" for number in range(len(model.vocabulary))]
    with pytest.raises(ValueError, match="load: vocabulary must be"):
        make_char_rnn("lstm", 2, vocabulary=names, **options).load(tmp_path)
    with pytest.raises(ValueError, match="load: cell must be 'gru' as in this model, got 'lstm'"):
        make_char_rnn("gru", 2, vocabulary=vocabulary, **options).load(tmp_path)
    with pytest.raises(ValueError, match=r"readout_dropout must be a number in \[0, 1\), got 1.0"):
        make_char_rnn(readout_dropout=1.0)


def test_a_file_without_a_vocabulary_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    make_char_rnn().save(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="must have 'vocabulary' in its metadata"):
        models.load(tmp_path)


def test_meta_device_and_skip_init():
    model = make_char_rnn("lstm", 2, embedding_features=3)
    with torch.device("meta"):
        empty = models.CharRNN(SYMBOLS, 7, "lstm", 2, embedding_features=3, dtype=torch.float64)
    assert empty.device.type == "meta"
    tokens = random_tokens(2, 5)
    for other in (empty.to_empty(device="cpu"), models.CharRNN(SYMBOLS, 7, "lstm", 2, 0.0, 3, dtype=torch.float64)):
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.log_prob(tokens), model.log_prob(tokens))
        assert torch.equal(other.sample(2, 5, seed=0)[0], model.sample(2, 5, seed=0)[0])


# Errors.

TOKENS = torch.zeros(2, 3, dtype=torch.int64)
BAD_LOG_PROB = [
    ({"tokens": TOKENS + 5}, r"tokens must lie in 0 \.\.\. 4, the vocabulary's symbols, got 5 at index \(0, 0\)"),
    ({"tokens": TOKENS - 1}, r"tokens must lie in 0 \.\.\. 4, .*got -1 at index"),
    ({"tokens": TOKENS.float()}, "tokens must be integers, got torch.float32"),
    ({"tokens": TOKENS.bool()}, "tokens must be integers, got torch.bool"),
    ({"tokens": TOKENS[0, 0]}, r"tokens must have shape \(\*batch, T\), got \(\)"),
    ({"tokens": TOKENS.to("meta")}, "tokens must be on the model's device, cpu, got meta"),
    ({"tokens": TOKENS, "lengths": torch.tensor([3])}, r"lengths must have shape \(2,\), .* got \(1,\)"),
    ({"tokens": TOKENS, "lengths": torch.tensor([3, 4])}, r"lengths must lie in 0 \.\.\. 3, got \[3, 4\]"),
    ({"tokens": TOKENS, "lengths": torch.tensor([3, -1])}, r"lengths must lie in 0 \.\.\. 3, got \[3, -1\]"),
    ({"tokens": TOKENS, "lengths": torch.tensor([3.0, 1.0])}, "lengths must be integers"),
    ({"tokens": TOKENS[0], "state": 3}, "state must be of as many sequences as tokens, 1, got 3"),
]
BAD_SAMPLE = [
    ({"n": -1}, "n must be an integer >= 0, got -1"),
    ({"n": 1.5}, "n must be an integer >= 0, got 1.5"),
    ({"length": None}, "length must be an integer >= 0, got None"),
    ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
    ({"temperature": math.inf}, "temperature must be positive and finite, got inf"),
    ({"top_k": 6}, r"top_k must be an integer in 1 \.\.\. 5, the vocabulary's size, or None, got 6"),
    ({"top_k": 0}, "top_k must be an integer in 1"),
    ({"top_p": 0.0}, r"top_p must be a number in \(0, 1\] or None, got 0.0"),
    ({"top_p": 1.1}, "top_p must be a number"),
    ({"top_p": math.nan}, "top_p must be a number"),
    ({"first_index": -1}, "first_index must be an integer >= 0, got -1"),
    ({"seed": -1}, "seed must be an integer in 0"),
    ({"seed": 1, "generator": torch.Generator()}, "seed and generator must not both be given"),
    ({"stop": "x"}, "text must consist of the vocabulary's 5 symbols, got 'x'"),
    ({"stop": 5}, r"stop must lie in 0 \.\.\. 4, got 5"),
    ({"prompt": "abx"}, "got 'x' at position 2"),
    ({"prompt": TOKENS + 5}, r"prompt must lie in 0 \.\.\. 4, the vocabulary's symbols, got 5 at index \(0, 0\)"),
    ({"prompt": TOKENS[:1]}, r"prompt must have shape \(P\) or \(n, P\) with n = 2, got \(1, 3\)"),
    ({"prompt": TOKENS.float()}, "prompt must be integers, got torch.float32"),
    ({"prompt_lengths": torch.tensor([1, 1])}, "prompt_lengths must come with a prompt, got no prompt"),
    ({"prompt": "ab", "prompt_lengths": torch.tensor([1, 3])}, r"prompt_lengths must be 2 integers in 0 \.\.\. 2"),
    ({"prompt": "ab", "prompt_lengths": torch.tensor([1])}, r"prompt_lengths must be 2 integers in 0 \.\.\. 2"),
    ({"prompt": "ab", "prompt_lengths": torch.tensor([1.0, 1.0])}, "prompt_lengths must be integers"),
    ({"state": 3}, "state must be of n = 2 sequences, got 3"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_LOG_PROB)
def test_what_log_prob_refuses(arguments, message):
    model = make_char_rnn()
    if "state" in arguments:
        arguments = arguments | {"state": model.begin(arguments["state"])}
    with pytest.raises(ValueError, match=message):
        model.log_prob(**arguments)


@pytest.mark.parametrize(("arguments", "message"), BAD_SAMPLE)
def test_what_sample_refuses(arguments, message):
    model = make_char_rnn()
    if "state" in arguments:
        arguments = arguments | {"state": model.begin(arguments["state"])}
    with pytest.raises(ValueError, match=message):
        model.sample(**{"n": 2, "length": 4} | arguments)


def test_the_index_of_a_state_is_its_own():
    model = make_char_rnn()
    *_, state = model.sample(2, 4, seed=1, first_index=3, return_state=True)
    with pytest.raises(ValueError, match="first_index must be that of the state whose draws go on, 3, or 0, got 5"):
        model.sample(2, 4, state=state, first_index=5)
    assert torch.equal(model.sample(2, 4, state=state, first_index=3)[0], model.sample(2, 4, state=state)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_features": 0}, "hidden_features must be a positive integer, got 0"),
        ({"hidden_features": 2.0}, "hidden_features must be a positive integer, got 2.0"),
        ({"cell": "GRU"}, "cell must be one of gru, lstm, rnn, rnn_relu, got 'GRU'"),
        ({"num_layers": 0}, "num_layers must be a positive integer, got 0"),
        ({"dropout": 1.0, "num_layers": 2}, r"dropout must be a number in \[0, 1\), got 1.0"),
        ({"dropout": 0.5}, "dropout must be 0 with num_layers 1"),
        ({"embedding_features": 0}, "embedding_features must be a positive integer or None, got 0"),
    ],
)
def test_what_a_model_cannot_be_made_of(arguments, message):
    with pytest.raises(ValueError, match=f"CharRNN: {message}"):
        models.CharRNN(SYMBOLS, **{"hidden_features": 3} | arguments)
    if "embedding_features" not in arguments:
        with pytest.raises(ValueError, match=f"RNN: {message}"):
            models.RNN(4, **{"hidden_features": 3} | arguments)
