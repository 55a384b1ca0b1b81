#!/usr/bin/env bash
# Build the native code in place (build/gpu), run the GPU tests and the benchmarks, on a bare machine:
# Python + torch + triton + nvcc, no network, the package not installed. Without a GPU it compiles, says
# so, and exits 0. Wheels of what the machine may lack (pybind11, pytest, diffusers, soxr,
# espeakng_loader) in .whl/.
#   usage: scripts/gpu_check.sh [--no-bench] [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/bare_machine.sh

archs=${SKYREELS_RT_CUDA_ARCHS:-80;86;89;90a}
nvcc=$(command -v nvcc || true)
[ -n "$nvcc" ] || nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc
benches=("kernels --device cuda" graphs "vae --device cuda" "step --full")
[ "${1:-}" != --no-bench ] || { benches=() && shift; }
table=""
row() { table+=$(printf '%-28s %s' "$1" "$2")$'\n'; }
finish() { printf '\n%s' "$table"; exit "$1"; }

for name in pybind11 pytest pytest_timeout diffusers soxr espeakng_loader; do
  bring "$name" || row "$name" "absent"
done

# nvcc alone, without cmake: the CUDA library has no other dependency.
if [ -x "$nvcc" ]; then
  gencode=()
  for arch in ${archs//;/ }; do gencode+=(-gencode "arch=compute_$arch,code=sm_$arch"); done
  gencode+=(-gencode "arch=compute_89,code=compute_89") # newer devices compile this themselves
  "$nvcc" -O3 -std=c++17 -shared -cudart static -Xcompiler -fPIC,-fvisibility=hidden \
    "${gencode[@]}" -Icsrc/include csrc/cuda/*.cu -o "$view/skyreels_rt/libskyreels_rt_cuda.so"
  row "libskyreels_rt_cuda.so" "built for $archs"
else
  row "libskyreels_rt_cuda.so" "not built: no nvcc"
fi

pybind=$("$python" -m pybind11 --cmakedir 2>/dev/null || true)
if [ -n "$pybind" ] && command -v cmake >/dev/null; then
  cmake -S . -B "$out/cpp" -DCMAKE_BUILD_TYPE=Release -Dpybind11_DIR="$pybind" \
    -DPython_EXECUTABLE="$(command -v "$python")" \
    -DSKYREELS_RT_OUTPUT_DIR="$view/skyreels_rt" >"$out/cmake.log"
  cmake --build "$out/cpp" -j >>"$out/cmake.log"
  row "_C" "built"
else
  row "_C" "not built: needs cmake and pybind11"
fi

if ! "$python" -c 'import torch' 2>/dev/null; then
  row "GPU tests" "not run: no torch"
  finish 0
fi
device=$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")')
row "torch" "$("$python" -c 'import torch; print(torch.__version__)')"
if [ -z "$device" ]; then
  row "GPU tests" "not run: no GPU here (compile-only check passed)"
  finish 0
fi
row "device" "$device"
status=0
mapfile -t tests < <(grep -rl --include='test_*.py' 'mark.gpu' tests | sort)
# -P: the root must not shadow the view.
"$python" -P -m pytest -q -m gpu -p no:cacheprovider "$@" "${tests[@]}" | tee "$out/pytest.log" || status=$?
row "GPU tests" "$(tail -n 1 "$out/pytest.log")"

# Figures stay in build/gpu; who measured puts them under benchmarks/results/.
for bench in ${benches[@]+"${benches[@]}"}; do
  json=$out/${bench%% *}_gpu.json
  # shellcheck disable=SC2086 # a name and its options
  if "$python" -P -m skyreels_rt bench $bench --json "$json"; then
    row "bench $bench" "$json"
  else
    row "bench $bench" "failed" && status=1
  fi
done
finish "$status"
