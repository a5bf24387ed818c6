#!/usr/bin/env bash
# Everything that a GPU is needed for, in one call of at most nine minutes, the most important first.
#
#     benchmarks/gpu_run.sh --out FOLDER [--only SECTION]... [--seconds N] [--tune] [--dry]
#
# Sections, each with the most seconds that it may take: see the end of this file. Together they would take longer than
# --seconds (540); what there is no time for is said, and a second call with --only measures it (as often as there are
# sections; `install` too, which the tokenizer and some models' tests need). --tune measures the launch tables first
# (kernels/launch_table.json; up to eight minutes more). --dry rehearses it all without a GPU: builds, collects, runs a
# part of the kernels' tests in Triton's interpreter and every benchmark at a tiny size.
#
# A section that fails or runs out of time is reported and does not stop the next; what it had measured is kept. FOLDER
# gets summary.txt, a JSON file of results for each benchmark (to be kept in benchmarks/results/MACHINE/) and
# gpu_run.tar.gz, with all logs. Needs no network: what the machine's Python lacks is left out, and said. Wheels in the
# folder wheels/ (pip download tyro docstring-parser typeguard -d wheels) are used where there are any. GPTFAST_COMMIT
# names the commit where git cannot.
set -uo pipefail
cd "$(dirname "$0")/.."
out="" only="" tune="" dry="" total=540
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out="${2:?--out needs a folder}"; shift 2 ;;
        --only) only+=" ${2:?--only needs a section} "; shift 2 ;;
        --seconds) total="${2:?--seconds needs a number}"; shift 2 ;;
        --tune) tune=1; shift ;;
        --dry) dry=--dry; shift ;;
        *) echo "usage: benchmarks/gpu_run.sh --out FOLDER [--only SECTION]... [--seconds N] [--tune] [--dry]" >&2; exit 2 ;;
    esac
done
[ -n "$out" ] || { echo "error: --out FOLDER is missing" >&2; exit 2; }
[[ "$total" =~ ^[0-9]+$ ]] || { echo "error: --seconds is $total; it must be a whole number" >&2; exit 2; }
[ -z "$tune" ] || total=$((total + 480))
mkdir -p "$out" build || exit 2
out="$(cd "$out" && pwd)"
build="$PWD/build/gpu"
logs="$build/logs"
export python="${PYTHON:-python3}" build

# The package as an install lays it out, but live: gptfast with kernels/ and benchmarks/ inside. Kernels can so be tested
# while the extension still compiles. PYTHONSAFEPATH keeps the checkout itself, whose gptfast/ lacks them, off the path.
rm -rf "$build/view" "$logs" && mkdir -p "$build/view/gptfast" "$logs"
ln -s "$PWD"/gptfast/* "$PWD/kernels" "$PWD/benchmarks" "$build/view/gptfast/"
if ls wheels/*.whl > /dev/null 2>&1; then
    "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$build/wheels" wheels/*.whl 2>&1 | tail -n 3
fi
export PYTHONPATH="$build/view:$build/wheels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1
export PIP_DISABLE_PIP_VERSION_CHECK=1
export GPTFAST_EXAMPLES=12 # of each random test of the kernels: nearly every one is a kernel to compile
[ -z "$dry" ] || export TRITON_INTERPRET=1
for folder in /usr/local/cuda/bin "$(dirname "$(command -v "$python")")"; do [ ! -d "$folder" ] || PATH="$PATH:$folder"; done

has() { "$python" -c "import $1" 2> /dev/null; }
bench() { "$python" -m gptfast.benchmarks "$@"; }
install_package() { # a real install, into a folder of its own; the extension that it compiled goes into the view
    "$python" -m pip install --no-index --no-build-isolation --no-deps --upgrade --target "$build/installed" . \
        && cp --remove-destination "$build"/installed/gptfast/_core*.so "$build/view/gptfast/" && return
    echo "pip could not install it; with CMake alone:"
    cmake -S csrc -B "$build/core" -DGPTFAST_BINDINGS=ON -DCMAKE_BUILD_TYPE=Release \
        -DGPTFAST_VERSION="$("$python" -c 'import gptfast; print(gptfast.__version__)')" \
        -DPython_EXECUTABLE="$(command -v "$python")" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
        && cmake --build "$build/core" --target _core -j \
        && cp --remove-destination "$build"/core/_core*.so "$build/view/gptfast/"
}
small() { bench kernels --dry --device "$(device)"; } # each kernel once, on tiny shapes
device() { [ -n "$dry" ] && echo cpu || echo cuda; }
sanitizer() {
    [ -z "$dry" ] || { small; return; }
    command -v compute-sanitizer || { echo "compute-sanitizer is not on this machine"; return 1; }
    # Not the cases "call of ...": the same kernels again. What an API call of PyTorch's returns is no error of memory.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 9 \
        "$python" -m gptfast.benchmarks kernels --dry --device cuda --only forward backward "attention decode"
}
counters() {
    [ -z "$dry" ] || { echo "no GPU, no counters"; return; }
    command -v ncu || { echo "ncu is not on this machine"; return 1; }
    # One launch of each kernel and grid; it prints what it found when the program ends, so this has to be short.
    ncu --clock-control none --section SpeedOfLight --section LaunchStats --section Occupancy \
        --filter-mode per-launch-config --launch-count 1 \
        --kernel-name 'regex:attention_(forward|backward|delta).*|norm_(forward|backward).*|gelu_.*|cross_entropy.*' \
        "$python" -m gptfast.benchmarks kernels --quick --seconds 0 --device cuda --only "attention forward" \
        "attention backward" "layer_norm forward" "layer_norm backward" "bias_gelu forward" "bias_gelu backward" \
        "cross_entropy forward" "cross_entropy backward"
}
run_tests() { # PATH...   on all cores: kernels compile for most of the time, some tests for a minute
    local workers=()
    ! has xdist || workers=(-n "$(nproc)" --dist worksteal)
    "$python" -m pytest -q -rfE --tb=short -p no:cacheprovider "${workers[@]}" "$@"
}
kernel_tests() {
    [ -z "$dry" ] || { run_tests tests/kernels/test_embed.py tests/kernels/test_dispatch.py; return; }
    run_tests tests/kernels --ignore tests/kernels/test_aot.py
}
model_tests() {
    run_tests ${dry:+--collect-only} tests/test_model.py tests/test_ops.py tests/test_precision.py tests/test_generate.py \
        tests/test_decode.py tests/test_hf_attention.py tests/test_linear_cross_entropy.py tests/test_convergence.py \
        tests/drop_in
}
tables() {
    local status=0
    table attention || status=1
    table rows || status=1
    return "$status"
}
table() { "$python" -m "gptfast.benchmarks.tune_$1" --table kernels/launch_table.json; }
breakdown() { bench breakdown $dry --json "$out/breakdown.json"; }
convergence() {
    bench convergence $dry --out "$logs/convergence" && cp "$logs/convergence/losses.png" "$out/"
}
measured() { # NAME FLAG...   all of a benchmark's results, in one file
    local name="$1"; shift
    bench "$name" --peers --quick $dry --json "$out/$name.json" "$@"
}
kernels() { # where attention leaves a GPU that no longer answers, the others run in a process of their own
    measured kernels && return
    local status=$?
    ! grep -q "the GPU no longer answers" "$logs/kernels.log" \
        || bench kernels --peers --quick --json "$logs/kernels-rest.json" --only norm gelu embedding entropy
    return "$status"
}
training() { bench train --peers --budget 35 --seconds 0.5 $dry --json "$out/train.json"; } # compiling all peers takes longer
tokenizer() { bench data tokenizer --peers --quick $dry --json "$out/tokenizer.json"; } # of which data uses the GPU
export out logs dry
export -f has bench install_package small device sanitizer counters run_tests kernel_tests model_tests tables table breakdown
export -f convergence measured kernels training tokenizer

summary=""
[ -z "$dry" ] || total=$((10 * total)) # the interpreter is slow
wanted() { [ -z "$only" ] || [[ "$only" == *" $1 "* ]]; }
section() { # NAME SECONDS COMMAND...
    local name="$1" limit="$2" start="$SECONDS" left=$((total - SECONDS))
    shift 2
    wanted "$name" || return 0
    [ -z "$dry" ] || limit=$((10 * limit))
    [ "$limit" -le "$left" ] || limit="$left"
    echo "== $name"
    if [ "$limit" -lt 15 ]; then # Python and torch alone take as long to start
        summary+="$(printf '%-12s no time was left' "$name")"$'\n'
        return 0
    fi
    # An interrupt, at which pytest still says what had failed.
    timeout --signal INT --kill-after 5 "$limit" bash -c "$*" > "$logs/$name.log" 2>&1
    local status=$?
    tail -n 6 "$logs/$name.log" | cut -c 1-200
    summary+="$(printf '%-12s %s %4d s of %d' "$name" "$(case $status in 0) echo ok;; 124 | 137) echo 'out of time';; *) echo "exit $status";; esac)" \
        $((SECONDS - start)) "$limit")"$'\n'
    tar -czf "$out/gpu_run.tar.gz" -C "$build" logs # after each, so that a run that is cut off keeps what it has
    printf '%s' "$summary" > "$out/summary.txt"
}

{
    git log -1 --format='commit %H' 2> /dev/null || echo "commit ${GPTFAST_COMMIT:-unknown}"
    "$python" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit --format=csv,noheader 2> /dev/null
} | tee "$logs/machine.txt"

# The extension compiles while the kernels are tested.
installing=""
if wanted install; then
    timeout 200 bash -c install_package > "$logs/install.log" 2>&1 &
    installing=$!
fi
if [ -n "$tune" ]; then
    section tune 480 tables
    cp kernels/launch_table.json "$logs/" # the next section packs it
fi
section tests 100 kernel_tests
section kernels 150 kernels
section train 170 training
if [ -n "$installing" ]; then
    wait "$installing" && status=ok || status="failed: $(tail -n 1 "$logs/install.log" | cut -c 1-120)"
    summary+="install      $status"$'\n'
fi
section decode 90 measured decode
section breakdown 40 breakdown
section convergence 45 convergence
section models 60 model_tests
section sanitizer 90 sanitizer
section counters 60 counters
section tokenizer 60 tokenizer
[ -n "$summary" ] || { echo "error: no section is named$only; the end of this file lists them" >&2; exit 2; }
{
    cat "$logs/machine.txt"
    printf '%s' "$summary"
    grep -hE '^(FAILED|ERROR) ' "$logs/tests.log" "$logs/models.log" 2> /dev/null | cut -c 1-160 | head -n 20
    "$python" -m gptfast.benchmarks.summary "$out"
} 2>&1 | tee "$out/summary.txt"
