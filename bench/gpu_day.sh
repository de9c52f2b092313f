#!/usr/bin/env bash
# A day on a GPU in minutes: `bash bench/gpu_day.sh` in the repository's root, on a machine with a GPU and no network.
# The whole is bounded by BUDGET seconds, each stage by its own timeout. STAGES chooses among: correct sanitizer pytest
# graph kernels time ncu, and sweep, and host in the place of ncu, and whole (verify, partials, fit, other students).
# Results under $OUT, 8 files at most: log.txt install.log correct.csv sanitizer.txt graph.txt kernels.csv times.csv,
# ncu.csv or host.txt. PREBUILT names a core that was built elsewhere, for the Python and the GPU of this machine.
# Without a GPU, `DRY=1 TRITON_INTERPRET=1 bash bench/gpu_day.sh` goes the same way on tiny sizes: half a minute.
set -u
export PATH=$PATH:/usr/local/cuda/bin
HERE=$PWD; OUT=${OUT:-$HERE/results/gpu_day}; WORK=${WORK:-$(mktemp -d)}; mkdir -p "$OUT" "$WORK"
PY=${PY:-python3}; BUDGET=${BUDGET:-525}; START=$(date +%s); DRY=${DRY:-0}; JOBS=${JOBS:-12}
STAGES=" ${STAGES:-correct sanitizer pytest graph kernels time ncu} "
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$HERE${PYTHONPATH:+:$PYTHONPATH} OUT WORK
export TRITON_CACHE_DIR=$WORK/triton TORCHINDUCTOR_CACHE_DIR=$WORK/inductor TMPDIR=$WORK
export TORCHINDUCTOR_FX_GRAPH_CACHE=1 TORCHINDUCTOR_COMPILE_THREADS=2 DAY="$PY -m bench.gpu_day"
rm -f "$OUT"/{log.txt,install.log,correct.csv,sanitizer.txt,graph.txt,kernels.csv,times.csv,times.started,ncu.csv,host.txt}
exec 3>&1; exec >>"$OUT/log.txt" 2>&1 # everything to the log, the table to 3
say() { echo "== $(($(date +%s) - START)) s: $*" | both; }
both() { while IFS= read -r line; do echo "$line"; echo "$line" >&3; done; }
left() { echo $((BUDGET - ($(date +%s) - START))); }
wanted() { [[ $STAGES == *" $1 "* ]]; }
stage() { # name seconds command...
  local name=$1 most=$2; shift 2; local l; l=$(left); [ "$most" -gt "$l" ] && most=$l
  [ "$most" -lt 5 ] && { say "$name: no time left"; return 99; }
  say "$name (at most $most s)"; timeout -k 5 "$most" "$@"; local rc=$?; [ $rc = 0 ] || say "$name: rc $rc"; return $rc
}
build() { # what was built elsewhere for this Python, if it came along; else install offline, else by cmake alone
  [ -n "${PREBUILT:-}" ] && cp "$PREBUILT" sobolev_kernels/ && return 0
  PIP_CONFIG_FILE=/dev/null timeout 150 $PY -m pip install --no-index --no-build-isolation --no-deps \
    --disable-pip-version-check --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=90-real \
    --config-settings=cmake.define.SOBOLEV_CUDA=on -v -e . && return 0
  echo "pip failed; cmake by itself"
  cmake -S . -B "$WORK/b" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CUDA_ARCHITECTURES=90-real -DSOBOLEV_CUDA=on \
    -DPython_EXECUTABLE="$(command -v $PY)" -Dpybind11_DIR="$($PY -m pybind11 --cmakedir)" &&
    timeout 150 cmake --build "$WORK/b" && cp "$WORK"/b/_C*.so sobolev_kernels/
}
parallel() { # count, command that takes its number and the count
  local n=$1 i pids=(); shift
  for i in $(seq 0 $((n - 1))); do "$@" "$i" "$n" & pids+=($!); done; wait "${pids[@]}"
}
# A process that died is followed by another, which goes on behind what killed it.
shard() { for _ in 1 2 3 4 5 6; do $DAY correct "$1" "$2" "$3" && break; done; }
timed() { for _ in 1 2 3 4; do $DAY times && break; done; }
export -f parallel shard timed

say "environment"
{ timeout 20 nvidia-smi; timeout 20 nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit --format=csv
  nvcc --version | tail -2; nproc
  timeout 60 $PY -c "import sys, numpy, torch, triton; print(sys.version, torch.__version__, triton.__version__, numpy.__version__)"
} 2>&1 | tail -40
if [ "$DRY" = 0 ]; then
  say "build, and beside it Triton's kernels"
  ( build >"$OUT/install.log" 2>&1; echo "build rc $?" >>"$OUT/install.log" ) & BUILD=$!
  # until the build is there an installed _C is missing, and the backends but cuda do without it
  wanted correct && stage "correct triton" 150 bash -c "parallel $JOBS shard triton"
  wait $BUILD; tail -2 "$OUT/install.log" | both
  wanted correct && stage "correct cuda" 60 bash -c "parallel 6 shard cuda"
else
  wanted correct && stage "correct triton" 200 bash -c "parallel 1 shard triton"
fi
cat "$WORK"/correct-*.csv >"$OUT/correct.csv" 2>/dev/null
if [ "$DRY" = 0 ]; then
  pids=()
  if wanted time; then stage "warm" 120 bash -c "parallel 6 $DAY warm" & pids+=($!); fi
  if wanted sanitizer; then
    say "sanitizer"
    S="compute-sanitizer --target-processes application-only --launch-timeout 120 --print-limit 20"
    timeout 40 $DAY tiny cuda >/dev/null; timeout 60 $DAY tiny triton >/dev/null
    for tool in memcheck racecheck synccheck; do for b in cuda triton; do
      ( PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 5 100 $S --tool $tool $DAY tiny $b; echo "rc $?" ) \
        >"$WORK/san-$tool-$b" 2>&1 & pids+=($!)
    done; done
  fi
  wanted pytest && {
    stage "pytest" "${PYTEST:-100}" $PY -m pytest -q -p no:cacheprovider $($PY -c "import xdist" && echo "-n $JOBS") \
      python_tests/test_*_device.py
    tail -40 "$OUT/log.txt" >&3
  }
  if wanted graph; then
    for p in ieee bf16; do for b in cuda triton; do stage "graph $b $p" 30 $DAY graph $b $p >>"$OUT/graph.txt" 2>&1; done; done
    grep -E "^graph|Error" "$OUT/graph.txt" | both
  fi
  wanted kernels && for b in cuda triton reference; do stage "kernels $b" 25 $DAY kernels $b ieee; done 2>&1 | grep ^kernels | both
  wait "${pids[@]}"
  wanted host && stage "host" 60 $DAY host | tee -a "$OUT/host.txt"
  wanted whole && { stage "verify" 60 $PY -m sobolev_kernels verify
    for each in partials fit students; do stage $each 60 $DAY $each; done
    stage "partials, timed" 90 $PY -m bench --partials --device cuda --shape 0 2 4 --seconds 1; } 2>&1 | grep -v -e ^== -e Warning | tail -60 | both
  if wanted sanitizer; then
    for f in "$WORK"/san-*; do echo "#### ${f##*/san-}"; head -c 20000 "$f"; done >"$OUT/sanitizer.txt"
    grep -H -E "ERROR SUMMARY|RACECHECK SUMMARY|^rc" "$WORK"/san-* | sed 's/.*san-//' | both
  fi
else
  wanted whole && for each in partials fit students; do stage $each 60 $DAY $each; done
  stage "tiny" 100 $DAY tiny triton; stage "warm" 60 $DAY warm 0 1
fi
wanted time && { L=$(left); wanted ncu && [ "$L" -gt 150 ] && L=$((L - 60)); stage "time" $((L - 10)) bash -c timed; grep ceiling "$OUT/log.txt" >&3; }
if [ "$DRY" = 0 ] && wanted ncu; then
  for w in "4 cuda bf16" "4 triton bf16" "2 cuda ieee" "2 triton bf16"; do
    [ "$(left)" -gt 30 ] && stage "ncu $w" 22 ncu --clock-control none --csv --page details --launch-skip 3 --launch-count 2 \
      --kernel-name "regex:register_step|step_kernel|finish_step" --section SpeedOfLight --section Occupancy \
      --section WarpStateStats --section MemoryWorkloadAnalysis --section ComputeWorkloadAnalysis $DAY one $w >>"$OUT/ncu.csv" 2>&1
  done
fi
wanted sweep && stage "sweep" 300 $PY -m bench.sweep --seconds 270
timeout 60 $DAY table 2>&1 | both
say "done"
