"""One side of bench.compare: reads requests from stdin and writes answers to stdout, one JSON object a line."""

import json
import os
import sys
import time
from pathlib import Path

import torch

import ar_fast

from . import calls


def serve(folder: str) -> None:
    """Answers until stdin ends.

    First comes {"threads", "small"}, answered by what runs. {"prepare": title} builds a call and warms it up, answered
    by the seconds of a call or an error. {"repeat": n} calls it n times, answered by the mean seconds.
    """
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if Path(ar_fast.__file__).resolve().parents[1] != Path(folder).resolve():
        raise RuntimeError(f"bench.compare: ar_fast was to come from {folder}, got {ar_fast.__file__}")
    found = {call.title: call for call in calls.select()}
    sizes, run = calls.TIMED, None
    for line in sys.stdin:
        request = json.loads(line)
        if "threads" in request:
            torch.set_num_threads(request["threads"])
            sizes = calls.COUNTED if request["small"] else calls.TIMED
            info = ar_fast.info()
            answer = {name: info[name] for name in ("cpu_isa", "cpu_threads", "torch", "compiler")}
        elif "prepare" in request:
            try:
                run = found[request["prepare"]].build(sizes)
                _timed(run, 2)
                answer = {"seconds": _timed(run, 1)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"}
        else:
            answer = {"seconds": _timed(run, request["repeat"])}
        answers.write(json.dumps(answer) + "\n")


def _timed(run: calls.Run, repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        run()
    return (time.perf_counter() - start) / repeat
