#!/usr/bin/env bash
# Builds with CUDA, runs the GPU tests and the benchmarks, from a bare checkout and with nothing downloadable.
# Needs python3 with torch (CUDA), setuptools, pybind11, numpy, pytest and pytest-benchmark, and cmake, ninja and nvcc.
# Stays within 9 minutes: every part has its own limit, and a part that fails does not keep the next from running.
# Results: bench/results/gpu-DATE-COMMIT/. With OUT set, the same files are copied there too.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
started=$SECONDS
commit=$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)
results="bench/results/gpu-$(date -u +%Y%m%d-%H%M)-${commit}"
mkdir -p "$results"
failed=0

left() { echo $((520 - (SECONDS - started))); }

# part NAME SECONDS COMMAND...: runs it within the smaller of its own and the remaining time, and keeps its output.
part() {
  local name=$1 limit=$2
  shift 2
  if (($(left) < limit)); then limit=$(left); fi
  if ((limit < 10)); then
    echo "$name: no time left" | tee -a "$results/summary.txt"
    failed=1
    return
  fi
  local from=$SECONDS status=0
  timeout "$limit" "$@" >"$results/$name.log" 2>&1 || status=$?
  echo "$name: exit $status after $((SECONDS - from)) s" | tee -a "$results/summary.txt"
  if ((status != 0)); then
    failed=1
    tail -n 30 "$results/$name.log"
  fi
}

{
  echo "date: $(date -u +%FT%TZ)"
  echo "commit: $commit"
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
  nvcc --version | tail -n 2
  "$python" -c "import platform, torch; print('python', platform.python_version(), 'torch', torch.__version__)"
  grep -m 1 'model name' /proc/cpuinfo
  echo "CPU cores: $(nproc)"
} >"$results/machine.txt" 2>&1
cat "$results/machine.txt"

# The build lands beside the sources and is imported from there: nothing is installed, no other torch is found.
export AR_FAST_CUDA=1 PYTHONPATH="$PWD" PYTHONDONTWRITEBYTECODE=1
part build 300 "$python" setup.py build_ext --inplace
part info 60 "$python" -c "import ar_fast, json; print(json.dumps(ar_fast.info(), indent=1, default=str))"
part tests 240 "$python" -m pytest tests --device cuda -k cuda -p no:cacheprovider --durations=5
tail -n 3 "$results/tests.log"
part bench 240 "$python" -m bench --device cuda --seconds 0.3 --compile-seconds 45 --out "$results" --name bench
if [[ -f "$results/bench.md" ]]; then cat "$results/bench.md"; fi

if [[ -n "${OUT:-}" ]]; then cp -r "$results"/. "$OUT"/; fi
echo "$((SECONDS - started)) s in all; results in $results"
exit "$failed"
