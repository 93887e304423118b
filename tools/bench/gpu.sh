#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and nvcc: builds the plugin, tests it, times every kernel and the models beside bitsandbytes,
# and writes docs/performance-gpu-measured.md.
#
#   tools/bench/gpu.sh [--kernels-only]
#
# PYTHON (python3) names the interpreter. Everything made goes below build/, which git ignores; models that `halfbyte bench` makes
# go below $XDG_CACHE_HOME/halfbyte. bitsandbytes is timed where torch sees the GPU: with the torch that pip brings by itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-python3}
environment=$PWD/build/gpu-environment
page=docs/performance-gpu-measured.md
kernels_only=${1:-}

missing() {
    echo "tools/bench/gpu.sh: $1" >&2
    exit 1
}
command -v nvcc >/dev/null || missing "no nvcc on PATH: install the CUDA toolkit 13"
command -v nvidia-smi >/dev/null || missing "no nvidia-smi: there is no NVIDIA driver on this machine, and nothing to time"
nvidia-smi >/dev/null || missing "nvidia-smi fails: there is no NVIDIA GPU to time"

step() { printf '\n=== %s\n' "$*" >&2; }

step "the kernels by themselves"
mkdir -p build
sources=()
for file in csrc/cuda/kernels/*.cu; do
    [[ $file == */plugin.cu ]] || sources+=("$file")
done
nvcc -std=c++20 -O3 -arch=native --threads 0 -Icsrc -o build/cuda_kernels tools/bench/cuda_kernels.cu "${sources[@]}"
written=$(mktemp build/gpu-page.XXXXXX)
{
    echo "# CUDA, measured"
    echo
    echo "Written by \`tools/bench/gpu.sh\` at $(git rev-parse --short HEAD 2>/dev/null || echo "an unknown commit"), $(date -u +%Y-%m-%d). Medians."
    echo
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit --format=csv,noheader | sed 's/^/- /'
    echo
    echo "## Kernels"
    echo
    build/cuda_kernels
} >"$written"

if [[ $kernels_only != --kernels-only ]]; then
    step "halfbyte with its plugin, and what it is compared with"
    "$python" -m venv "$environment"
    export VIRTUAL_ENV=$environment PATH=$environment/bin:$PATH
    pip install --quiet --config-settings=cmake.define.HALFBYTE_CUDA=ON .
    pip install --quiet pytest torch "transformers~=5.23.0" "peft~=0.21.2" "bitsandbytes~=0.50.2" accelerate
    halfbyte info --devices >&2
    {
        echo
        echo "## Models"
        echo
        echo "Tokens a second; prompt of 512, 64 tokens written."
        echo
        echo "| model | runtime | decode | prefill |"
        echo "| --- | --- | --- | --- |"
        for shape in llama-1b llama-8b; do
            python tools/bench/gpu_models.py "$shape"
        done
    } >>"$written"
fi
mv "$written" "$page"
step "written: $page"
