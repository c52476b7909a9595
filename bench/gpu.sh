#!/usr/bin/env bash
# Everything that a GPU is needed for, in one call within 9 minutes, from a bare checkout and with nothing downloadable:
# builds, checks every op against the CPU, measures, runs the GPU tests, compute-sanitizer and ncu.
# Needs python3 with torch (CUDA), setuptools, pybind11, numpy, safetensors, tqdm, pytest and scikit-learn, and cmake,
# ninja and nvcc; pytest-xdist, compute-sanitizer and ncu where they are there.
#
# Every part has its own limit, and one that fails keeps the next from running only where nothing could be believed
# then: after the build, and after the check of the ops. Results: bench/results/gpu-DATE-COMMIT/ and a .tar.gz of it,
# written again after every part; with OUT set, the archive is copied there too.
#
# AR_FAST_CUDA_ARCHITECTURES: by default that of the GPU alone, which builds in about a quarter of the time of all.
# SECONDS_IN_ALL: 540.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
started=$SECONDS
commit=$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)
name="gpu-$(date -u +%Y%m%d-%H%M)-${commit}"
results="bench/results/$name"
mkdir -p "$results"
failed=0

left() { echo $((${SECONDS_IN_ALL:-540} - 15 - (SECONDS - started))); }

say() { echo "$*" | tee -a "$results/summary.txt"; }

archive() {
  if ! tar -czf "bench/results/$name.tar.gz" -C bench/results "$name"; then
    say "archive: it was not written"
    failed=1
    return
  fi
  if [[ -n "${OUT:-}" ]]; then cp "bench/results/$name.tar.gz" "$OUT"/; fi
}

finish() {
  archive
  echo "$((SECONDS - started)) s in all; results in $results and $name.tar.gz"
  exit "$failed"
}

# part NAME SECONDS COMMAND...: runs it within the smaller of its own and the remaining time, and keeps its output.
part() {
  local part_name=$1 limit=$2
  shift 2
  if (($(left) < limit)); then limit=$(left); fi
  if ((limit < 10)); then
    say "$part_name: no time left"
    failed=1
    return 1
  fi
  local from=$SECONDS status=0
  timeout --kill-after=5 "$limit" "$@" >"$results/$part_name.log" 2>&1 || status=$?
  say "$part_name: exit $status after $((SECONDS - from)) s"
  if ((status != 0)); then
    failed=1
    tail -n 30 "$results/$part_name.log"
  fi
  archive
  return "$status"
}

# has COMMAND...: whether it runs here, within some seconds; what it says goes to the log.
has() { timeout 20 "$@" >>"$results/probes.log" 2>&1; }

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
if [[ -z "${AR_FAST_CUDA_ARCHITECTURES:-}${TORCH_CUDA_ARCH_LIST:-}" ]]; then
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -dc 0-9)
  case "$capability" in
    90) AR_FAST_CUDA_ARCHITECTURES=90a-real ;;
    [0-9]*) AR_FAST_CUDA_ARCHITECTURES="$capability-real" ;;
    *) AR_FAST_CUDA_ARCHITECTURES="" ;;
  esac
fi
if [[ -n "${AR_FAST_CUDA_ARCHITECTURES:-}" ]]; then export AR_FAST_CUDA_ARCHITECTURES; fi
say "architectures: ${AR_FAST_CUDA_ARCHITECTURES:-${TORCH_CUDA_ARCH_LIST:-default}}"

part build 300 "$python" setup.py build_ext --inplace || finish
part info 60 "$python" -c "import ar_fast, json; print(json.dumps(ar_fast.info(), indent=1, default=str))" || finish
part smoke 90 "$python" -m bench.smoke --device cuda || finish

part reference 120 "$python" -m bench.reference --device cuda --seconds 0.2 --budget 100 --out "$results"
if [[ -f "$results/reference.md" ]]; then cat "$results/reference.md"; fi
part bench 90 "$python" -m bench --device cuda --seconds 0.2 --compile-seconds 0 --budget 75 --out "$results" --name bench
if [[ -f "$results/bench.md" ]]; then cat "$results/bench.md"; fi

workers=()
if has "$python" -c "import xdist"; then
  workers=(-n 4 --dist worksteal)
else
  say "tests: pytest-xdist is not there, so that a test that loses the GPU ends them all"
fi
part tests 120 "$python" -m pytest tests --device cuda -k cuda -p no:cacheprovider --durations=5 --test-seconds 30 \
  "${workers[@]+"${workers[@]}"}"
tail -n 3 "$results/tests.log" 2>/dev/null

for tool in memcheck racecheck synccheck; do
  if ! has compute-sanitizer --version; then
    say "compute-sanitizer: not here, skipped"
    break
  fi
  part "sanitizer-$tool" 25 compute-sanitizer --tool "$tool" --error-exitcode 99 --kernel-name-exclude regex=at:: \
    "$python" -m bench.smoke --device cuda --alone --only "${SANITIZED:-NADE*}"
done

# kernel, the case of bench.smoke that runs it
kernels=(
  "nade_scan_kernel|NADE: log_prob*" "nade_sums_kernel|NADE: log_prob*" "nade_local_kernel|NADE: log_prob*"
  "nade_sample_kernel|NADE: sample" "nade_sample_general_kernel|NADE Categorical: sample"
  "masked_mlp_sample_kernel|MADE: sample" "masked_linear_tiles_kernel|masked_linear bfloat16 staircase B 70"
  "masked_linear_rows_kernel|masked_linear float32 staircase B 3"
)
for entry in "${kernels[@]}"; do
  kernel=${entry%%|*} only=${entry#*|}
  if (($(left) < 40)); then
    say "ncu $kernel: no time left"
    continue
  fi
  command=("$python" -m bench.smoke --device cuda --alone --only "$only")
  if ! has ncu --kernel-name "regex:$kernel" --launch-count 1 --metrics sm__cycles_elapsed.max "${command[@]}"; then
    say "ncu $kernel: it does not run here, skipped (probes.log)"
    continue
  fi
  part "ncu-$kernel" 30 ncu --kernel-name "regex:$kernel" --launch-count 1 --set full "${command[@]}"
done

# Last: compiling takes what time is left.
if (($(left) >= 30)); then
  part compile "$(left)" "$python" -m bench --device cuda --suite nade --compiled --seconds 0.2 \
    --compile-seconds "$(($(left) / 4))" --budget "$(($(left) - 15))" --out "$results" --name compile
else
  say "compile: no time left"
fi
finish
