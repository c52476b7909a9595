"""The emulation of CUDA itself: what a GPU leaves undefined is an error or shows, and what it defines is computed."""

import ctypes

import emulated
import pytest
import torch

from ar_fast import _library, functional

INVALID_VALUE, INVALID_CONFIGURATION, MISALIGNED, LAUNCH_FAILURE = 1, 9, 716, 719
ORDERS = list(emulated.ORDERS)


@pytest.fixture(scope="module")
def library():
    return emulated.load()


@pytest.fixture(params=ORDERS)
def order(request, library):
    with emulated.fiber_order(request.param, seed=3):
        yield request.param


def pointer(tensor, bytes_past=0):
    return ctypes.c_void_p(tensor.data_ptr() + bytes_past)


def message(library):
    return library.ar_fast_emulation_error().decode()


def test_a_missing_barrier_shows_in_every_order(library, order):
    out = torch.zeros(64, dtype=torch.int32)
    assert library.ar_fast_test_neighbour(pointer(out), ctypes.c_bool(False)) == 0
    assert not torch.equal(out, (torch.arange(64, dtype=torch.int32) + 1) % 64)


def test_a_barrier_orders_the_threads(library, order):
    out = torch.zeros(64, dtype=torch.int32)
    assert library.ar_fast_test_neighbour(pointer(out), ctypes.c_bool(True)) == 0
    assert torch.equal(out, (torch.arange(64, dtype=torch.int32) + 1) % 64)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (0, ["waits at __syncthreads", "has exited"]),
        (1, ["divergence", "__syncthreads", "while"]),
        (2, ["waits at __shfl_xor_sync", "mask 0xffffffff", "has exited"]),
        (3, ["waits at __shfl_xor_sync", "mask 0xffffffff", "has exited"]),
        (4, ["waits at __sync", "while"]),
        (5, ["not in the mask"]),
    ],
)
def test_divergence_is_an_error(library, order, kind, words):
    assert library.ar_fast_test_divergence(kind) == LAUNCH_FAILURE
    text = message(library)
    assert text.startswith("divergent: block (0, 0, 0)")
    assert "thread (" in text
    for word in words:
        assert word in text, text


def test_parts_of_a_warp_may_go_different_ways(library, order):
    out = torch.zeros(32, dtype=torch.int32)
    assert library.ar_fast_test_half_warps(pointer(out)) == 0
    assert out.tolist() == [lane ^ 1 for lane in range(16)] + [20] * 16


def test_misaligned_vectors_are_an_error(library):
    values, out = torch.randn(16), torch.zeros(16)
    base = -values.data_ptr() % 16
    aligned_out = pointer(out, -out.data_ptr() % 16)
    assert library.ar_fast_test_vector(pointer(values, base), aligned_out) == 0
    assert library.ar_fast_test_vector(pointer(values, base + 4), aligned_out) == MISALIGNED
    assert "vector: block (0, 0, 0): thread (0, 0, 0): 128-bit load" in message(library)
    assert "4 bytes past" in message(library)


def test_warp_operations(library, order):
    generator = torch.Generator().manual_seed(0)
    values, out = torch.randn(32, generator=generator), torch.zeros(7, 32)
    assert library.ar_fast_test_warp(pointer(values), pointer(out)) == 0
    total, lanes = values.double().sum(), torch.arange(32)
    torch.testing.assert_close(out[0], total.float().expand(32))
    torch.testing.assert_close(out[1], (total * (lanes // 4 + 1)).float())
    assert torch.equal(out[2], torch.cat([values[:3], values[:-3]]))
    assert torch.equal(out[3], torch.cat([values[5:], values[-5:]]))
    assert torch.equal(out[4], (values > 0).sum().float().expand(32))
    assert torch.equal(out[5], torch.ones(32))
    assert torch.equal(out[6], out[4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matrix_instructions(library, order, dtype):
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(16, 16, generator=generator).to(dtype)
    b = torch.randn(16, 8, generator=generator).to(dtype)
    c = torch.zeros(16, 8)
    is_bfloat16 = ctypes.c_bool(dtype == torch.bfloat16)
    assert library.ar_fast_test_matrix(pointer(a), pointer(b), pointer(c), is_bfloat16) == 0
    torch.testing.assert_close(c, (a.double() @ b.double()).float(), rtol=1e-5, atol=1e-5)


def round_to_tf32(values):
    return ((values.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_matrix_instructions_of_tf32(library, order):
    generator = torch.Generator().manual_seed(1)
    a, b, c = torch.randn(16, 8, generator=generator), torch.randn(8, 8, generator=generator), torch.zeros(16, 8)
    assert library.ar_fast_test_tf32(pointer(a), pointer(b), pointer(c)) == 0
    exact = round_to_tf32(a).double() @ round_to_tf32(b).double()
    torch.testing.assert_close(c, exact.float(), rtol=1e-6, atol=1e-6)
    assert (c - (a.double() @ b.double())).abs().max() > 1e-4


def test_tf32_rounds_to_nearest_and_ties_away_from_zero(library):
    tie, infinity = 2.0**-11, float("inf")
    values = [1.0, 1 + tie, -1 - tie, 1 + tie - 2.0**-23, 1 + 3 * tie, 2 - tie, infinity, -infinity, float("nan"), 0.0]
    wanted = [1.0, 1 + 2 * tie, -1 - 2 * tie, 1.0, 1 + 4 * tie, 2.0, infinity, -infinity, float("nan"), 0.0]
    values, out = torch.tensor(values), torch.zeros(len(values))
    assert library.ar_fast_test_round_to_tf32(pointer(values), pointer(out), len(values)) == 0
    torch.testing.assert_close(out, torch.tensor(wanted), rtol=0, atol=0, equal_nan=True)


def test_async_copies_land_at_the_wait(library, order):
    values, out = torch.randn(132), torch.zeros(128)
    past = -values.data_ptr() % 16
    source = pointer(values, past)
    expected = values[past // 4 : past // 4 + 128].flip(0)
    assert library.ar_fast_test_async(source, pointer(out), ctypes.c_bool(True), 16) == 0
    assert torch.equal(out, expected)
    assert library.ar_fast_test_async(source, pointer(out), ctypes.c_bool(False), 16) == 0
    assert out.isnan().all()
    assert library.ar_fast_test_async(source, pointer(out), ctypes.c_bool(True), 8) == 0
    kept = torch.tensor([False, False, True, True]).repeat(32)
    assert torch.equal(out, torch.where(kept, expected, 0.0))


def test_shared_memory_starts_as_nan(library):
    out = torch.zeros(64)
    assert library.ar_fast_test_uninitialised(pointer(out)) == 0
    assert out.isnan().all()


def test_blocks_wait_for_one_another_only_when_co_resident(library, order):
    counters = torch.zeros(2, dtype=torch.int32)
    assert library.ar_fast_test_grid_barrier(pointer(counters), 5, ctypes.c_bool(True)) == 0
    assert counters.tolist() == [5, 5 * sum(range(64))]
    counters.zero_()
    assert library.ar_fast_test_grid_barrier(pointer(counters), 5, ctypes.c_bool(False)) == LAUNCH_FAILURE
    assert "spins" in message(library)


def launch(library, grid=(1, 1, 1), block=(32, 1, 1), shared=0):
    return library.ar_fast_test_launch((ctypes.c_uint * 6)(*grid, *block), ctypes.c_uint64(shared))


@pytest.mark.parametrize(
    ("grid", "block"),
    [
        ((0, 1, 1), (1, 1, 1)),
        ((1, 65536, 1), (1, 1, 1)),
        ((1, 1, 65536), (1, 1, 1)),
        ((1, 1, 1), (0, 1, 1)),
        ((1, 1, 1), (1025, 1, 1)),
        ((1, 1, 1), (32, 33, 1)),
        ((1, 1, 1), (1, 1, 65)),
    ],
)
def test_grids_and_blocks_past_the_limits_are_refused(library, grid, block):
    assert launch(library, grid, block) == INVALID_CONFIGURATION
    assert message(library).startswith("empty: no ")


@pytest.mark.parametrize("grid", [(70000, 1, 1), (1, 65535, 1), (1, 1, 65535)])
def test_the_largest_grids_run(library, grid):
    assert launch(library, grid, (1, 1, 1)) == 0


def test_the_largest_blocks_run(library):
    for block in [(1024, 1, 1), (32, 32, 1), (16, 1, 64)]:
        assert launch(library, block=block) == 0


@pytest.mark.parametrize(("capability", "most"), [(7, 64), (8, 99), (9, 227)])
def test_shared_memory_past_what_the_device_has_is_refused(library, capability, most):
    with emulated.gpu(capability):
        assert launch(library, shared=most * 1024) == 0
        assert launch(library, shared=most * 1024 + 1) == INVALID_VALUE
        assert message(library) == f"empty: {most * 1024 + 1} bytes of dynamic shared memory"


def test_static_shared_memory_counts_towards_the_48_kilobytes_of_a_launch(library):
    """A kernel with 40 KiB of its own: 8 KiB of dynamic memory fit, one byte more must be asked for beforehand."""
    out = torch.zeros(1)

    def run(dynamic, raises):
        return library.ar_fast_test_large_static(pointer(out), ctypes.c_uint64(dynamic), ctypes.c_bool(raises))

    assert run(8192, False) == 0 and out.item() == 2
    assert run(8193, False) == INVALID_VALUE
    assert "too much shared memory: 40960 bytes static, 49153 in all" in message(library)
    assert run(8193, True) == 0
    assert run(187 * 1024, True) == 0
    assert run(187 * 1024 + 1, True) == INVALID_VALUE


def test_more_than_4096_bytes_of_arguments_are_refused(library):
    out = ctypes.c_char()
    assert library.ar_fast_test_arguments(ctypes.byref(out), ctypes.c_bool(False)) == 0
    assert out.value == b"\x07"
    assert library.ar_fast_test_arguments(ctypes.byref(out), ctypes.c_bool(True)) == INVALID_VALUE
    assert message(library) == "arguments: 4104 bytes of arguments"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversions_round_as_torch_does(library, dtype):
    generator = torch.Generator().manual_seed(2)
    scale = 2.0 ** torch.randint(-30, 20, (1000,), generator=generator)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 65504, 65519, 65520, 6e-5, 2.0**-25])
    values = torch.cat([torch.randn(1000, generator=generator) * scale, special])
    for part in values.split(500):
        out = torch.zeros_like(part)
        is_bfloat16 = ctypes.c_bool(dtype == torch.bfloat16)
        assert library.ar_fast_test_convert(pointer(part), pointer(out), len(part), is_bfloat16) == 0
        torch.testing.assert_close(out, part.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


def test_a_state_of_just_48_kilobytes_is_drawn_from():
    """FVSBN on 64 x 64 x 3: with the kernel's static shared memory it is more than a launch may have unasked."""
    variables = 64 * 64 * 3
    with _library.use("ar_fast_emulated"):
        values, _, state = functional.fvsbn_sample(
            torch.full((1, variables), 99.0), torch.zeros(variables, variables), variables=variables,
            start=variables - 1, stop=variables, seed=0,
        )  # fmt: skip
    assert values.tolist() == [[1.0]] and bool((state == 99).all())
