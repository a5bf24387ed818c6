#!/usr/bin/env bash
# Everything that a GPU is needed for, in one call of at most nine minutes, the most important first.
#
#     benchmarks/gpu_run.sh --out FOLDER [--only SECTION]... [--tune] [--dry]
#
# Sections, each with its seconds: see the end of this file; --only takes those named (as often as there are sections),
# --tune measures the launch tables first (kernels/launch_table.json; up to eight minutes more). --dry rehearses it all
# without a GPU: builds, collects, runs a part of the kernels' tests in Triton's interpreter and every benchmark at a
# tiny size.
#
# A section that fails or runs out of time is reported and does not stop the next. FOLDER gets summary.txt, a JSON file of
# results for each benchmark (to be kept in benchmarks/results/MACHINE/) and gpu_run.tar.gz, with all logs. Needs no
# network: what the machine's Python lacks is left out, and said. Wheels in the folder wheels/ (pip download tyro
# docstring-parser typeguard -d wheels) are used where there are any. GPTFAST_COMMIT names the commit where git cannot.
set -uo pipefail
cd "$(dirname "$0")/.."
out="" only="" tune="" dry=""
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out="${2:?--out needs a folder}"; shift 2 ;;
        --only) only+=" ${2:?--only needs a section} "; shift 2 ;;
        --tune) tune=1; shift ;;
        --dry) dry=--dry; shift ;;
        *) echo "usage: benchmarks/gpu_run.sh --out FOLDER [--only SECTION]... [--tune] [--dry]" >&2; exit 2 ;;
    esac
done
[ -n "$out" ] || { echo "error: --out FOLDER is missing" >&2; exit 2; }
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
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 "$python" -m gptfast.benchmarks \
        kernels --dry --device cuda
}
counters() {
    [ -z "$dry" ] || { echo "no GPU, no counters"; return; }
    command -v ncu || { echo "ncu is not on this machine"; return 1; }
    ncu --clock-control none --section SpeedOfLight --section LaunchStats --section Occupancy --launch-count 24 \
        --kernel-name 'regex:attention_(forward|backward|delta).*|norm_(forward|backward).*|gelu_.*|cross_entropy.*' \
        "$python" -m gptfast.benchmarks kernels --quick --seconds 0 --only "attention forward" "attention backward" \
        "layer_norm" "bias_gelu" "cross_entropy" --device cuda
}
kernel_tests() {
    local some=(tests/kernels --ignore tests/kernels/test_aot.py) workers=()
    "$python" -m pytest --collect-only -q "${some[@]}" | tail -n 1
    [ -z "$dry" ] || some=(tests/kernels/test_embed.py tests/kernels/test_dispatch.py)
    ! has xdist || workers=(-n "$(nproc)") # kernels compile for most of the time
    "$python" -m pytest -q -rfE --tb=short -p no:cacheprovider "${workers[@]}" "${some[@]}"
}
model_tests() {
    "$python" -m pytest -q -rfE --tb=short -p no:cacheprovider ${dry:+--collect-only} tests/test_model.py tests/test_ops.py \
        tests/test_precision.py tests/test_generate.py tests/test_decode.py tests/test_hf_attention.py \
        tests/test_linear_cross_entropy.py tests/test_convergence.py tests/drop_in
}
tables() { table attention && table rows; }
table() { "$python" -m "gptfast.benchmarks.tune_$1" --table kernels/launch_table.json; }
breakdown() { "$python" -m gptfast.benchmarks.breakdown $dry --json "$out/breakdown.json"; }
convergence() {
    "$python" -m gptfast.benchmarks.convergence $dry --out "$logs/convergence" && cp "$logs/convergence/losses.png" "$out/"
}
measured() { # NAME FLAG...   all of a benchmark's results, in one file
    local name="$1"; shift
    bench "$name" --peers --quick $dry --json "$out/$name.json" "$@"
}
training() { bench train --peers --budget 45 --seconds 0.5 $dry --json "$out/train.json"; } # compiling all peers takes longer
tokenizer() { bench tokenizer data --peers --quick $dry --json "$out/tokenizer.json"; }
export out logs dry
export -f has bench install_package small device sanitizer counters kernel_tests model_tests tables table breakdown convergence measured
export -f training tokenizer

summary=""
wanted() { [ -z "$only" ] || [[ "$only" == *" $1 "* ]]; }
section() { # NAME SECONDS COMMAND...
    local name="$1" limit="$2" start="$SECONDS"
    shift 2
    wanted "$name" || return 0
    [ -z "$dry" ] || limit=$((10 * limit)) # the interpreter is slow
    echo "== $name"
    timeout --kill-after 5 "$limit" bash -c "$*" > "$logs/$name.log" 2>&1
    local status=$?
    tail -n 6 "$logs/$name.log" | cut -c 1-200
    summary+="$(printf '%-12s %s %4d s of %d' "$name" "$(case $status in 0) echo ok;; 124 | 137) echo 'out of time';; *) echo "exit $status";; esac)" \
        $((SECONDS - start)) "$limit")"$'\n'
    tar -czf "$out/gpu_run.tar.gz" -C "$build" logs # after each, so that a run that is cut off keeps what it has
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
[ -z "$tune" ] || section tune 480 tables
section tests 100 kernel_tests
section kernels 110 measured kernels
section train 110 training
if [ -n "$installing" ]; then
    wait "$installing" && status=ok || status="failed: $(tail -n 1 "$logs/install.log" | cut -c 1-120)"
    summary+="install      $status"$'\n'
fi
section decode 40 measured decode
section breakdown 20 breakdown
section models 40 model_tests
section sanitizer 50 sanitizer
section counters 25 counters
section convergence 20 convergence
section tokenizer 25 tokenizer
[ -n "$summary" ] || { echo "error: no section is named$only; the end of this file lists them" >&2; exit 2; }
{
    cat "$logs/machine.txt"
    printf '%s' "$summary"
    "$python" -m gptfast.benchmarks.summary "$out"
} 2>&1 | tee "$out/summary.txt"
