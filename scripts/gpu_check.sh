#!/usr/bin/env bash
# Build the native code in place (build/gpu) and run the GPU tests, on a bare machine:
# Python + torch + triton + nvcc, no network, the package not installed.
# Without a GPU it compiles, says so, and exits 0. Optional wheels (pybind11, pytest) in .whl/.
#   usage: scripts/gpu_check.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
out=$PWD/build/gpu
view=$out/view
archs=${SKYREELS_RT_CUDA_ARCHS:-80;86;89;90a}
nvcc=$(command -v nvcc || true)
[ -n "$nvcc" ] || nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc
table=""
row() { table+=$(printf '%-28s %s' "$1" "$2")$'\n'; }
finish() { printf '\n%s' "$table"; exit "$1"; }

mkdir -p "$out/site"
rm -rf "$view" && mkdir -p "$view/skyreels_rt"

# The package as an installed one would look: links, with the mapped folders in their places.
for item in skyreels_rt/*; do
  case $item in
    *.so | */__pycache__) ;;
    *) ln -s "$PWD/$item" "$view/skyreels_rt/" ;;
  esac
done
ln -s "$PWD/kernels" "$view/skyreels_rt/kernels"
ln -s "$PWD/export" "$view/skyreels_rt/export"
export PYTHONPATH=$view:$out/site${PYTHONPATH:+:$PYTHONPATH}

# What the machine lacks, from wheels that were brought along.
for name in pybind11 pytest pytest_timeout; do
  "$python" -c "import $name" 2>/dev/null && continue
  [ -d .whl ] && "$python" -m pip install -q --no-index --find-links .whl \
    --target "$out/site" "$name" 2>/dev/null || row "$name" "absent"
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
tests=(tests/kernels)
if "$python" -c 'import av, soxr' 2>/dev/null; then
  tests+=(tests/models tests/runtime)
else
  row "GPU tests of models" "not run: no av or soxr"
fi
# -P: the root must not shadow the view.
"$python" -P -m pytest -q -m gpu -p no:cacheprovider "$@" "${tests[@]}" | tee "$out/pytest.log" || status=$?
row "GPU tests" "$(tail -n 1 "$out/pytest.log")"

# Steps of SkyReels-V3-A2V's size, made on the device: 38 GB of weights, some five minutes.
if "$python" -c 'import sys, torch; sys.exit(torch.cuda.mem_get_info()[1] < 70 << 30)'; then
  if timeout 420 "$python" -P - "$out/step_full_gpu.json" >"$out/step.log" 2>&1 <<'PY'; then
import sys
from pathlib import Path

import torch

from skyreels_rt.bench.large_step import measure_large_steps

report = measure_large_steps(
    command="scripts/gpu_check.sh",
    device=torch.device("cuda", 0),
    on_row=lambda row: print(f"{row.name:56} {row.value:9.4f} {row.unit}", flush=True),
)
report.write(Path(sys.argv[1]))
PY
    row "steps of V3-A2V's size" "$out/step_full_gpu.json"
  else
    row "steps of V3-A2V's size" "failed or took too long: $out/step.log"
    status=1
  fi
  cat "$out/step.log"
else
  row "steps of V3-A2V's size" "not run: less than 70 GiB"
fi
finish "$status"
