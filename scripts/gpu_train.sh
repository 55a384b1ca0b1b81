#!/usr/bin/env bash
# Train the embedded models on one GPU, on a bare machine: Python + torch + transformers, no
# network, the package not installed. Wheels of soxr and espeakng_loader in .whl/.
#   usage: scripts/gpu_train.sh RUN [RECIPE [MODEL_TO_BEGIN_WITH]]
# Run it again to go on. What hears and reads learns beside the processes that draw the clips.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/bare_machine.sh

run=$1
recipe=${2:-demo}
for name in soxr espeakng_loader; do
  bring "$name" || { echo "$name: bring its wheel in .whl/"; exit 2; }
done
train() { "$python" -P -m skyreels_rt train "$run" --recipe "$recipe" "$@"; }
since=$SECONDS
took() {
  printf '%-22s %5d s\n' "$1" "$((SECONDS - since))"
  since=$SECONDS
}

begin=()
[ -z "${3:-}" ] || [ -e "$run/vae.safetensors" ] || begin=(--from "$3")
train --stage vae ${begin[@]+"${begin[@]}"}
# The latents' statistics, which all shares need; no clip yet.
train --stage clips --until 0
took vae

shares=$(($(nproc) > 1 ? $(nproc) - 1 : 1))
pids=()
for ((part = 0; part < shares; part++)); do
  OMP_NUM_THREADS=1 train --stage clips --share "$part/$shares" >"$out/clips_$part.log" 2>&1 &
  pids+=($!)
done
OMP_NUM_THREADS=1 train --stage speech --stage text
for pid in "${pids[@]}"; do
  wait "$pid" || { tail -n 5 "$out"/clips_*.log; exit 1; }
done
took "clips, speech, text"
train --stage reader --stage flow
took "reader, flow"
train --stage distil
took distil
