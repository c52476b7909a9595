"""Compression: what comes back, how many bits it takes, and what damaged files do."""

import importlib.util
import json
import math
import struct
import zlib

import pytest
import torch
from conftest import available_isas, isa
from model_cases import KINDS, make_model, random_binary

import ar_fast
from ar_fast import _library, compression, flows, heads, models

pytestmark = pytest.mark.skipif(_library.backend == "reference", reason="the references do not compress")

HEADS = {
    "Bernoulli": heads.Bernoulli(),
    "Categorical": heads.Categorical(7),
    "Categorical of one": heads.Categorical(1),
    "LogisticMixture": heads.LogisticMixture(3, levels=6),
    "LogisticMixture of bytes": heads.LogisticMixture(11, levels=256),
}
MIXED = heads.PerVariable([heads.Bernoulli(), heads.Categorical(4), heads.LogisticMixture(2, 5)] * 4)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def some(model, *batch):
    """Events that are as likely as the model's samples are, and some that are not."""
    x = model.sample(batch, seed=3)
    if batch[0] > 1:
        sizes = torch.tensor(model.head.sizes(model.variables)).reshape(model.event_shape)
        x[-1] = (torch.rand(model.event_shape) * sizes).long().minimum(sizes - 1).to(x.dtype)
    return x


def parts(data):
    """The header, and the stream of each chunk."""
    header, body = compression.read_header(data)
    count = header.shape[0] if header.shape else 1
    return header, compression._chunks(body, -(-count // header.chunk))[0]


def assert_round_trip(model, x, **options):
    data = ar_fast.compress(model, x, **options)
    back = ar_fast.decompress(model, data)
    assert back.dtype == x.dtype and torch.equal(back, x)
    return data


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_events_come_back(kind, name):
    dtype = DTYPES[(KINDS.index(kind) + list(HEADS).index(name)) % len(DTYPES)]
    model = make_model(kind, (3, 13), head=HEADS[name], dtype=dtype)
    for count, chunk in ((1, None), (7, None), (7, 3), (33, 1)):
        assert_round_trip(model, some(model, count), chunk=chunk)


@pytest.mark.parametrize("name", available_isas())
@pytest.mark.parametrize("window", [(2, 1), (0, 3)])
def test_images_that_are_drawn_along_wavefronts_come_back(name, window):
    """A stream is read in the order of the pixels, whichever of them is drawn first without one."""
    torch.manual_seed(0)
    model = models.OffsetNADE((2, 19, 11), [9, 5], window, head=heads.LogisticMixture(2, levels=32))
    with isa(name):
        assert_round_trip(model, some(model, 2))


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    ("dtype", "variables"),
    [*((dtype, variables) for dtype in DTYPES for variables in (1, 7, 111)), (torch.float32, 989)],
    ids=str,
)
def test_events_of_all_sizes_come_back(kind, name, dtype, variables):
    model = make_model(kind, variables, head=HEADS[name], dtype=dtype)
    for count, chunk in ((1, None), (37, None), (37, 5)):
        assert_round_trip(model, some(model, count), chunk=chunk)


@pytest.mark.parametrize("kind", ["NADE", "ARMLP", "FVSBN", "MADE", "DeepNADE"])
def test_variables_of_different_kinds(kind):
    model = make_model(kind, 12, head=MIXED, dtype=torch.float32)
    assert_round_trip(model, some(model, 9), chunk=4)


@pytest.mark.parametrize("cell, embedding", [("gru", None), ("lstm", 5), ("rnn", None)])
def test_texts_come_back(cell, embedding):
    model = models.CharRNN("abcdefg ", 11, cell, num_layers=2, embedding_features=embedding)
    text = "a cab fade bag " * 9
    tokens = model.encode(text)
    for length, chunk in ((0, None), (1, None), (135, None), (135, 40), (120, 40), (3000, 7)):
        data = assert_round_trip(model, tokens.repeat(30)[:length], chunk=chunk)
        assert len(parts(data)[1]) == -(-length // (chunk or 2**15))
    assert model.decode(ar_fast.decompress(model, ar_fast.compress(model, tokens))) == text


@pytest.mark.parametrize("name", available_isas())
def test_instruction_sets(name):
    """A file of any instruction set that the machine has comes back, and the set of before is in use again."""
    for kind in KINDS:
        model = make_model(kind, 45, head=heads.Categorical(5), dtype=torch.float32)
        x = some(model, 6)
        with isa(name):
            data = ar_fast.compress(model, x)
        before = _library._C.isa()
        assert torch.equal(ar_fast.decompress(model, data), x)
        assert parts(data)[0].isa == name and _library._C.isa() == before


def test_an_instruction_set_that_is_not_there():
    model = make_model("NADE", 9, dtype=torch.float32)
    data = changed(ar_fast.compress(model, some(model, 3)), isa="SVE")
    with pytest.raises(ValueError, match="instruction set SVE"):
        ar_fast.decompress(model, data)
    with isa("DEFAULT"):
        own = available_isas()
    assert own  # still usable


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_rows_change_no_bit(kind):
    model = make_model(kind, 301, head=heads.LogisticMixture(2, levels=16), dtype=torch.float32)
    x = some(model, 40)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(ar_fast.compress(model, x, chunk=5))
        assert found[0] == found[1] == found[2]
        # The streams of some of the chunks do not depend on the others.
        assert parts(ar_fast.compress(model, x[:15], chunk=5))[1] == parts(found[0])[1][:3]
    finally:
        torch.set_num_threads(before)


def test_shapes_and_dtypes():
    model = make_model("NADE", (2, 5), dtype=torch.float32)
    x = random_binary(2, 3, 2, 5)
    for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int64, torch.float16, torch.float64):
        assert_round_trip(model, x.to(dtype))
    assert_round_trip(model, x[0, 0])
    assert_round_trip(model, x[:0])
    assert_round_trip(model, x[:, :0].int())
    assert_round_trip(model, x.transpose(0, 1))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["NADE", "MADE", "OffsetNADE", "RNN"])
@pytest.mark.parametrize("name", HEADS)
def test_bits(kind, name):
    """At most 0.1% and 32 bits a chunk more than -log2 p."""
    model = make_model(kind, (16, 16), head=HEADS[name], dtype=torch.float32)
    x = model.sample(60, seed=1)
    data = ar_fast.compress(model, x, chunk=20)
    expected = -model.log_prob(x).double().sum().item() / math.log(2)
    streams = parts(data)[1]
    assert len(streams) == 3
    found = 8 * sum(map(len, streams))
    assert found <= 1.001 * expected + 3 * 32
    assert found >= 0.999 * expected - 1
    header = len(json.dumps(vars(parts(data)[0]), separators=(",", ":")))
    assert len(data) == 8 * 3 + found // 8 + header + 16


@torch.no_grad()
def test_bits_where_nearly_all_is_certain():
    """Digits have many pixels that are always dark: what they cost at least is little."""
    model = models.NADE(784, hidden_features=5)
    for parameter in model.parameters():
        parameter.zero_()
    model.out_bias.fill_(-30.0)
    model.out_bias[:100] = -3.0
    x = model.sample(500, seed=0)
    expected = -model.log_prob(x).double().sum().item() / math.log(2)
    (stream,) = parts(ar_fast.compress(model, x, chunk=500))[1]
    assert 8 * len(stream) <= 1.001 * expected + 32 + 500 * 684 * 1.2e-5


def test_values_without_probability():
    """Values of probability 0, and parameters that are no numbers, come back too."""
    model = models.NADE(5, hidden_features=3, head=heads.LogisticMixture(2, levels=9))
    with torch.no_grad():
        model.out_bias.fill_(-500.0)
    x = torch.full((3, 5), 8)
    assert_round_trip(model, x)
    with torch.no_grad():
        model.out_bias.fill_(math.nan)
    assert_round_trip(model, x)
    for head in (heads.Bernoulli(), heads.Categorical(3)):
        model = models.MADE(5, [4], head=head)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(math.inf)
        assert_round_trip(model, torch.randint(2, (4, 5)))


def changed(data, **fields):
    """The same data with another header, whose checksum fits."""
    header, body = compression.read_header(data)
    described = json.dumps(vars(header) | fields).encode()
    made = data[:8] + struct.pack("<I", len(described)) + described + body
    return made + struct.pack("<I", zlib.crc32(made))


def resealed(data):
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def test_damage():
    """Whatever byte changes, and wherever a file ends: an error."""
    model = make_model("NADE", 30, dtype=torch.float32)
    data = ar_fast.compress(model, some(model, 20), chunk=7)
    for at in range(len(data)):
        for bit in {1 << at % 8, 128}:
            broken = bytearray(data)
            broken[at] ^= bit
            with pytest.raises(ValueError, match="decompress: data must be what compress returned"):
                ar_fast.decompress(model, bytes(broken))
    for length in range(len(data)):
        with pytest.raises(ValueError, match="decompress: data must be what compress returned"):
            ar_fast.decompress(model, data[:length])
    with pytest.raises(ValueError, match="damaged"):
        ar_fast.decompress(model, data + b"\0")


def test_damage_that_the_checksum_of_the_file_does_not_show():
    """The checksums of the chunks show it: an error, or the right values where the bit did not matter."""
    model = make_model("NADE", 30, dtype=torch.float32)
    x = some(model, 20)
    data, errors = ar_fast.compress(model, x, chunk=7), 0
    start = 12 + struct.unpack_from("<I", data, 8)[0]
    places = range(start + int(torch.randint(4, ())), len(data) - 4, 4)
    for at in places:
        broken = bytearray(data)
        broken[at] ^= 1 << at % 8
        try:
            assert torch.equal(ar_fast.decompress(model, resealed(bytes(broken))), x)
        except ValueError as error:
            errors += 1
            assert "decompress: " in str(error)
    assert errors > 0.7 * len(places)


@pytest.mark.parametrize(
    "fields",
    [
        {"chunk": 0},
        {"chunk": 2**60},
        {"lanes": 0},
        {"lanes": 2**40},
        {"shape": [2**50, 30]},
        {"shape": [-1, 30]},
        {"shape": [20, 31]},
        {"shape": 20},
        {"shape": []},
        {"x": "complex64"},
        {"x": 3},
        {"isa": 7},
        {"kernel": "a"},
        {"kernel": True},
        {"more": 1},
    ],
    ids=str,
)
def test_headers_that_lie(fields):
    model = make_model("NADE", 30, dtype=torch.float32)
    data = ar_fast.compress(model, some(model, 20), chunk=7)
    with pytest.raises(ValueError, match="decompress: "):
        ar_fast.decompress(model, changed(data, **fields))


def test_other_models_and_builds():
    model = make_model("NADE", 30, dtype=torch.float32)
    data = ar_fast.compress(model, some(model, 5))
    other = make_model("NADE", 30, dtype=torch.float32)
    with torch.no_grad():
        other.in_weight[0, 0] += 1e-6
    for wrong in (
        other,
        make_model("NADE", 30, dtype=torch.float64),
        make_model("MADE", 30),
        model.in_order(range(30)),
    ):
        with pytest.raises(ValueError, match="model must be the one that compressed"):
            ar_fast.decompress(wrong, data)
    with pytest.raises(ValueError, match="this build must compute the bits"):
        ar_fast.decompress(model, changed(data, kernel=1))
    with pytest.raises(ValueError, match="format must be 1, got 2"):
        ar_fast.decompress(model, data[:7] + b"\2" + data[8:])


def test_other_bits_are_noticed(monkeypatch):
    """A build that computes other conditionals, even if the kernel's number did not show it."""
    model = make_model("NADE", 30, dtype=torch.float32)
    data = ar_fast.compress(model, some(model, 5))
    monkeypatch.setattr(compression, "_fingerprint", lambda _: parts(data)[0].model)
    monkeypatch.setattr(compression._Coded, "kernel", lambda _: parts(data)[0].kernel)
    with torch.no_grad():
        model.out_bias += 0.01
    with pytest.raises(ValueError, match="chunk 0 must have the checksum"):
        ar_fast.decompress(model, data)


def test_verification(monkeypatch):
    model = make_model("NADE", 30, dtype=torch.float32)
    x = some(model, 5)
    data = ar_fast.compress(model, x)
    monkeypatch.setattr(compression, "_decompressed", lambda *_: 1 - x)
    with pytest.raises(RuntimeError, match="decompressing must give x again"):
        ar_fast.compress(model, x)
    assert ar_fast.compress(model, x, verify=False) == data


def test_what_cannot_be_compressed():
    nade, x = make_model("NADE", 4), torch.zeros(2, 4)
    for head in (heads.GaussianMixture(2), heads.PerVariable([heads.Bernoulli()] * 3 + [heads.GaussianMixture(1)])):
        with pytest.raises(ValueError, match="finitely many values, got a real one"):
            ar_fast.compress(models.NADE(4, hidden_features=3, head=head), x)
    with pytest.raises(ValueError, match="at most 1048576 values"):
        ar_fast.compress(models.NADE(1, hidden_features=1, head=heads.LogisticMixture(1, levels=2**20 + 1)), x[:, :1])
    with pytest.raises(ValueError, match="model must be a NADE"):
        ar_fast.compress(flows.MAF(4), x)
    with pytest.raises(ValueError, match="model must be a NADE"):
        ar_fast.compress(models.Ensemble([nade]), x)
    with pytest.raises(ValueError, match="no context"):
        ar_fast.compress(make_model("NADE", 4, 2), x)
    with pytest.raises(ValueError, match="on the CPU"):
        ar_fast.compress(models.NADE(4, hidden_features=3, device="meta"), x)
    for wrong in (torch.zeros(2, 5), torch.zeros(()), torch.zeros(4, dtype=torch.complex64), [0]):
        with pytest.raises(ValueError, match="compress: x must"):
            ar_fast.compress(nade, wrong)
    for value in (0.5, 2.0, -1.0, math.nan, math.inf):
        wrong = x.clone()
        wrong[1, 2] = value
        with pytest.raises(ValueError, match=r"whole numbers in 0 ... 1, got .* in variable 2 of row 1"):
            ar_fast.compress(nade, wrong)
    for chunk in (0, -1, 1.5, 2**40):
        with pytest.raises(ValueError, match="chunk must be"):
            ar_fast.compress(nade, x, chunk=chunk)
    text = models.CharRNN("ab", 3)
    for wrong in (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3), torch.tensor([0, 2])):
        with pytest.raises(ValueError, match="compress: "):
            ar_fast.compress(text, wrong)


def test_the_references_do_not_compress(monkeypatch):
    model = make_model("NADE", 4)
    monkeypatch.setattr(_library, "_C", None)
    with pytest.raises(ValueError, match="needs the compiled ops"):
        ar_fast.compress(model, torch.zeros(2, 4))


def test_draws_are_as_before_after_an_error():
    """A call that fails does not leave the thread coding."""
    model = make_model("NADE", 30, dtype=torch.float32)
    expected = model.sample(3, seed=0)
    encoder = _library._C.StreamEncoder(2)
    encoder.begin(torch.zeros(2, 31))
    with pytest.raises(RuntimeError, match="must encode float32 of shape"):
        model.sample(2, seed=0)
    with pytest.raises(RuntimeError, match="one coder at a time"):
        _library._C.StreamDecoder([b""]).begin()
    encoder.end(True)
    assert torch.equal(model.sample(3, seed=0), expected)
    encoder.begin(torch.zeros(2, 30))
    with pytest.raises(RuntimeError, match="must draw with ar_fast's sampling ops"):
        encoder.end(False)
    assert torch.equal(model.sample(3, seed=0), expected)


@pytest.mark.skipif(importlib.util.find_spec("constriction") is None, reason="needs constriction")
@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
@pytest.mark.parametrize("symbols", [2, 3, 300])
def test_the_words_are_those_of_constriction(count, symbols):
    """Its range coder is the oracle of ours: it makes the same words, and reads ours."""
    import constriction
    import numpy as np

    precision = 24
    random = np.random.default_rng(int(torch.randint(2**31, ())))
    for _ in range(20):
        weights = random.random(symbols) ** random.integers(1, 40) + 1e-12
        frequencies = 1 + (weights / weights.sum() * (2**precision - symbols)).astype(np.int64)
        frequencies[0] += 2**precision - frequencies.sum()
        model = constriction.stream.model.Categorical(frequencies / 2**precision, perfect=True)
        drawn = random.choice(symbols, count, p=frequencies / 2**precision).astype(np.int32)
        drawn[::7] = random.integers(symbols)
        ours = _library._C.StreamEncoder(1)
        begins = np.cumsum(frequencies) - frequencies
        intervals = np.stack([begins[drawn], frequencies[drawn], np.full(count, precision)], 1)
        ours.encode(0, torch.from_numpy(intervals.astype(np.int32)).reshape(-1, 3))
        words = np.frombuffer(ours.finish()[0], "<u4")
        theirs = constriction.stream.queue.RangeEncoder()
        if count:
            theirs.encode(drawn, model)
        expected = theirs.get_compressed()
        padded = np.concatenate([words, np.zeros(2, np.uint32)]).astype(np.uint32)
        assert np.array_equal(padded[: len(expected)], expected) and not padded[len(expected) :].any()
        if count:
            assert np.array_equal(constriction.stream.queue.RangeDecoder(padded).decode(model, count), drawn)
