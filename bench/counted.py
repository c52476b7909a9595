"""What runs under valgrind for bench.counts: every reference call once, with callgrind on within the call only.

    valgrind --tool=callgrind ... python -m bench.counted SHIM TITLE...

SHIM is the compiled CLIENT_REQUESTS of bench.counts; each call ends with a dump of its own, in the order of the titles.
"""

import ctypes
import gc
import sys

import torch

from ar_fast import _library

from . import calls

# torch and the allocator keep what the first calls asked for. More calls would also let Python specialise all bytecode,
# but every one is some 20 times as slow here, and the same calls run in the same order each time.
WARM_UP = 2


def main() -> int:
    shim, titles = ctypes.CDLL(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    _library._C.set_isa("AVX2")
    found = {call.title: call for call in calls.select()}
    runs = [found[title].build(calls.COUNTED) for title in titles]
    for run in runs:
        for _ in range(WARM_UP):
            run()
    gc.collect()
    gc.disable()
    shim.instrument()
    for title, run in zip(titles, runs, strict=True):
        shim.start()
        run()
        shim.stop(title.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
