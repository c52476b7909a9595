"""What an H200 does in a clock or a second, as (low, middle, high) in time: low is the fast end. Each has its source.

An H200 is an H100 (SXM) with more and faster memory: what was measured on an H100's multiprocessors holds for it.
"""

from dataclasses import dataclass

WHITEPAPER = "NVIDIA H100 Tensor Core GPU Architecture (whitepaper, 2022), and the H200 datasheet"
GUIDE = "NVIDIA CUDA C++ Programming Guide, throughput of native arithmetic instructions, compute capability 9.0"
LUO = "Luo et al., Dissecting the NVIDIA Hopper Architecture through Microbenchmarking, arXiv:2402.13499, 2501.12084"
ABDELKHALIK = (
    "Abdelkhalik et al., Demystifying the Nvidia Ampere Architecture through Microbenchmarking, arXiv:2208.11174"
)
JIA = "Jia et al., Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking, arXiv:1804.06826"
DEWING = "github.com/markdewing/AI_kernels, latency/README.md: GH200, L1 40, L2 281, memory 690 cycles"
STUDY = "CUDA Performance Study, NVIDIA H100 SXM5 (public repository): L1 40, L2 260, memory 571 cycles, measured"
CHIPS = "chipsandcheese.com, Nvidia's H100: Funny L2, and Tons of Bandwidth (2023)"
ZHANG = "Zhang et al., A Study of Single and Multi-device Synchronization Methods in Nvidia GPUs, arXiv:2004.05371"
GRAPHS = "NVIDIA developer blog, Getting Started with CUDA Graphs (2019): kernels queued back to back"
TAIL = "NVIDIA Deep Learning Performance Guide, wave quantization"
FAST_CU = "github.com/pranjalssh/fast.cu, README: bfloat16 by cuBLAS on an H100, 716 TFLOP/s at 4096^3, 795 at 8192^3"


@dataclass(frozen=True)
class Rate:
    low: float
    middle: float
    high: float
    unit: str
    source: str

    def __getitem__(self, which: int) -> float:
        return (self.low, self.middle, self.high)[which]


@dataclass(frozen=True)
class Limits:
    """Of a multiprocessor (CUDA C++ Programming Guide, technical specifications per compute capability)."""

    warps: int
    blocks: int
    shared_bytes: int
    shared_reserved: int = 1024  # of every block
    registers: int = 65536
    register_unit: int = 256  # a warp's registers are a multiple of this


LIMITS = {"sm_80": Limits(64, 32, 164 * 1024), "sm_90a": Limits(64, 32, 228 * 1024)}
MULTIPROCESSORS = 132
PARTITIONS = 4  # of a multiprocessor: each issues one instruction of a warp a clock
CLOCK_GHZ = Rate(1.98, 1.83, 1.60, "GHz", WHITEPAPER + "; " + CHIPS + " (clocks under load)")

# Cycles from an instruction until one that needs its result may issue.
LATENCY = {
    "alu": Rate(4, 4.5, 6, "cycles", ABDELKHALIK + "; " + JIA),
    "dfma": Rate(8, 12, 16, "cycles", ABDELKHALIK),
    "mufu": Rate(14, 20, 30, "cycles", ABDELKHALIK),
    "convert": Rate(10, 14, 20, "cycles", JIA),
    "lds": Rate(23, 29, 33, "cycles", LUO),
    "shfl": Rate(22, 24, 30, "cycles", JIA),
    "mma": Rate(24, 33, 36, "cycles", LUO),
    "l1": Rate(33, 40, 44, "cycles", LUO + "; " + DEWING),
    "l2": Rate(200, 275, 330, "cycles", LUO + "; " + DEWING + "; " + STUDY),
    "dram": Rate(480, 580, 720, "cycles", LUO + "; " + DEWING + "; " + STUDY),
    "barrier": Rate(16, 25, 40, "cycles", ZHANG),
    "branch": Rate(2, 7, 12, "cycles", JIA),
}

# Cycles that an instruction of one warp keeps its unit busy: of a partition's.
BUSY = {
    "issue": Rate(1, 1, 1, "cycles", WHITEPAPER),
    "fma": Rate(1, 1, 1, "cycles", GUIDE),
    "alu": Rate(1, 2, 2, "cycles", GUIDE + " (64 integer operations a clock)"),
    "mufu": Rate(8, 8, 8, "cycles", GUIDE + " (16 a clock)"),
    "dfma": Rate(2, 2, 2, "cycles", GUIDE + " (64 a clock)"),
    "mma": Rate(4, 6.5, 8, "cycles", LUO + " (mma.sync reaches about 62% of wgmma's peak)"),
}
# The same of the one that the partitions share, for 4 bytes a lane.
SHARED_BUSY = Rate(1, 1, 1.25, "cycles", GUIDE + " (32 lanes a clock for shared memory and shuffles)")

L2_TBPS = Rate(7.0, 5.5, 4.5, "TB/s", LUO + "; " + CHIPS)
DRAM_TBPS = Rate(4.6, 4.2, 3.6, "TB/s", WHITEPAPER + " (4.8 TB/s; 80 to 95% of it is reached)")

# Microseconds from the end of a kernel to the first instruction of the next in the stream, its drain included.
LAUNCH_US = Rate(1.0, 2.0, 3.5, "us", GRAPHS)
# One barrier of all blocks of a cooperative launch, and of a cluster.
GRID_BARRIER_US = Rate(0.9, 1.4, 2.2, "us", ZHANG)
CLUSTER_BARRIER_US = Rate(0.1, 0.19, 0.3, "us", LUO + " (distributed shared memory: about 180 cycles a hop)")
# A block's first instructions: arguments, constants and code that no cache has yet.
BLOCK_START_US = Rate(0.3, 0.6, 1.2, "us", JIA + " (instruction and constant caches); " + TAIL)

# A cuBLAS product of 16-bit operands: of all multiprocessors at work, and the outputs that one of them makes at a time.
PRODUCT_TFLOPS = Rate(835, 791, 640, "TFLOP/s", WHITEPAPER + " (989; the middle is 80% of it); " + FAST_CU)
PRODUCT_TILE = (128, 256)  # the largest of CUTLASS's for sm_90, and that of most large products; also turned around
