#!/usr/bin/env bash
# Everything that a GPU is needed for, in one call: build, correctness (bf16 too), kernels against their peers,
# training, generation, tokenizer.
#
#     benchmarks/gpu_run.sh --out FOLDER [--tune] [--quick] [--only STEP]...
#
# Steps: build tests tune tune-rows attention rows linear-loss drop-in train decode model-tests tokenizer (tune and tune-rows only with
# --tune or --only).
#
# A step that fails is reported and does not stop the next; each leaves a log in FOLDER, and the summary comes last.
# Needs no network: what the machine's Python lacks is left out, and said.
set -uo pipefail
cd "$(dirname "$0")/.."
out="" tune="" quick="" only=""
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out="${2:?--out needs a folder}"; shift 2 ;;
        --tune) tune=1; shift ;;
        --only) only+=" ${2:?--only needs a step}"; shift 2 ;;
        --quick) quick=--quick; shift ;;
        *) echo "usage: benchmarks/gpu_run.sh --out FOLDER [--tune] [--quick] [--only STEP]..." >&2; exit 2 ;;
    esac
done
[ -n "$out" ] || { echo "error: --out FOLDER is missing" >&2; exit 2; }
mkdir -p "$out" build
out="$(cd "$out" && pwd)"
python="${PYTHON:-python3}"

# The package as an install would lay it out, without one: gptfast with kernels/ inside. PYTHONSAFEPATH keeps the checkout
# itself, whose gptfast/ has no kernels, off the path.
view="$PWD/build/gpu-view"
rm -rf "$view" && mkdir -p "$view/gptfast"
ln -s "$PWD"/gptfast/* "$PWD/kernels" "$view/gptfast/"
export PYTHONPATH="$view:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1

summary=""
step() { # NAME SECONDS COMMAND...
    local name="$1" limit="$2" start="$SECONDS"
    shift 2
    [ -z "$only" ] || [[ " $only " == *" $name "* ]] || return 0
    echo "== $name"
    timeout "$limit" "$@" > "$out/$name.log" 2>&1
    local status=$?
    tail -n 12 "$out/$name.log"
    summary+="$(printf '%-24s exit %-3s %4d s' "$name" "$status" $((SECONDS - start)))"$'\n'
}

{
    git log -1 --format='commit %H' 2>/dev/null
    "$python" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__, torch.cuda.get_device_name())'
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
} | tee "$out/machine.txt"

core() {
    cmake -S csrc -B build/gpu-core -DGPTFAST_BINDINGS=ON -DCMAKE_BUILD_TYPE=Release \
        -DGPTFAST_VERSION="$("$python" -c 'import gptfast; print(gptfast.__version__)')" \
        -DPython_EXECUTABLE="$(command -v "$python")" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
        && cmake --build build/gpu-core --target _core -j \
        && cp build/gpu-core/_core*.so "$view/gptfast/"
}
export -f core
export python view
step build 300 bash -c core
workers=""  # kernels compile for most of the time of their tests
"$python" -c 'import xdist' 2>/dev/null && workers="-n $(nproc)"
step tests 420 "$python" -m pytest -q -rfE --tb=short -p no:cacheprovider $workers tests/kernels --ignore tests/kernels/test_aot.py
[[ -n "$tune" || " $only " == *" tune "* ]] && step tune 500 "$python" benchmarks/tune_attention.py --table kernels/launch_table.json && cp kernels/launch_table.json "$out/"
[[ -n "$tune" || "$only" == *tune-rows* ]] && step tune-rows 400 "$python" benchmarks/tune_rows.py --table kernels/launch_table.json && cp kernels/launch_table.json "$out/"
step attention 500 "$python" benchmarks/attention.py $quick --json "$out/attention.json"
step rows 300 "$python" benchmarks/rows.py $quick --json "$out/rows.json"
step linear-loss 200 "$python" benchmarks/linear_cross_entropy.py --json "$out/linear_cross_entropy.json"
step drop-in 300 "$python" benchmarks/drop_in.py --json "$out/drop_in.json"
step train 400 "$python" benchmarks/train_gpu.py --json "$out/train.json"
step decode 200 "$python" benchmarks/decode.py --dtype bf16 fp32 --batch 1 8 64 --new 128 --json "$out/decode.json"
step model-tests 300 "$python" -m pytest -q -p no:cacheprovider tests/test_model.py tests/test_ops.py \
    tests/test_precision.py tests/test_generate.py tests/test_decode.py tests/test_hf_attention.py \
    tests/test_linear_cross_entropy.py tests/test_convergence.py tests/drop_in
if "$python" -c 'import tyro' 2>/dev/null; then
    step tokenizer 300 "$python" benchmarks/tokenizer.py document batch decode --quick --json "$out/tokenizer.json"
fi
echo "== summary"
printf '%s' "$summary" | tee "$out/summary.txt"
