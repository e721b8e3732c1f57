#!/usr/bin/env bash
# Measure training speed on one GPU: usage: benchmarks/gpu_speed.sh WORK MODEL_CONFIG DATA TOOL...
# Writes tables and logs to $OUT (default: WORK/out). MODEL_CONFIG is a folder with config and tokenizer.
set -uo pipefail
work=$1 config=$2 data=$3
shift 3
out=${OUT:-$work/out}
mkdir -p "$work" "$out"
export PYTHONPATH=src:benchmarks:${PYTHONPATH:-} PYTHONUNBUFFERED=1 MEDQA_HOME=$work/home
say() { echo "== $(date +%T) $*"; }

say prepare
python3 benchmarks/speed.py prepare "$work" --model "$config" --data "$data" --random-weights 2>&1 | tail -5
say tests
timeout 200 python3 -m pytest -q -m gpu tests/gpu/test_fast.py 2>&1 | tail -40 | tee "$out/tests.log"
for tool in "$@"; do
  options=(--repeats 3)
  case $tool in ours-plain) options=(--repeats 1 --steps 30) ;; hackathon|trainer|trl*) options=(--repeats 2 --steps 40) ;; esac
  say "$tool"
  timeout 150 python3 benchmarks/speed.py run "$work" "$tool" "${options[@]}" 2>&1 | tail -25 | tee "$out/$tool.log" | tail -12
  cp "$work/$tool.json" "$out/" 2>/dev/null
done
say table
python3 benchmarks/speed.py table "$work" | tee "$out/speed.md"
say end
