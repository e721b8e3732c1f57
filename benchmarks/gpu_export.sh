#!/usr/bin/env bash
# What exports keep of a tuned model, on a GPU machine: bash benchmarks/gpu_export.sh WORK [QUESTIONS] [GGUF_QUESTIONS]
# WORK holds the run folder `run`; its base model and data are where its run.json says. Results: $OUT or WORK.
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=$1 OUT=${OUT:-$1}
export PYTHONPATH=${PYTHONPATH:-}:src
python3 benchmarks/export_parity.py "$WORK/run" "$OUT/merged.json" --questions "${2:-2135}" bf16 fp16 fp32
python3 benchmarks/export_parity.py "$WORK/run" "$OUT/gguf.json" --questions "${3:-500}" f16 q8_0 q6_k q4_k_m
