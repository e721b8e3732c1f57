#!/usr/bin/env bash
# Measure training speed on one GPU: usage: benchmarks/gpu_speed.sh WORK MODEL_CONFIG DATA TOOL...
# Rows are cut at 256 tokens, as the hackathon's were. Writes tables and logs to $OUT (default: WORK/out). MODEL_CONFIG is a folder with config and tokenizer.
set -uo pipefail
work=$1 config=$2 data=$3
shift 3
out=${OUT:-$work/out}
mkdir -p "$work" "$out"
export PYTHONPATH=src:benchmarks:${PYTHONPATH:-} PYTHONUNBUFFERED=1 MEDQA_HOME=$work/home
say() { echo "== $(date +%T) $*"; }

say prepare
python3 benchmarks/speed.py prepare "$work" --model "$config" --data "$data" --random-weights --max-length 256 2>&1 | tail -5
for tool in "$@"; do
  options=(--repeats 3)
  case $tool in ours-plain) options=(--repeats 1 --steps 30) ;; hackathon|trainer|trl*) options=(--repeats 2 --steps 40) ;; esac
  say "$tool"
  timeout 150 python3 benchmarks/speed.py run "$work" "$tool" "${options[@]}" 2>&1 | tail -25 | tee "$out/$tool.log" | tail -12
  cp "$work/$tool.json" "$out/" 2>/dev/null
done
say profile
timeout 100 python3 benchmarks/profile_step.py "$work" --path launched fast > "$out/profile.md" 2>&1
grep -v "^\[" "$out/profile.md" | grep "|" | cut -c1-150
say table
python3 benchmarks/speed.py table "$work" | tee "$out/speed.md"
say end
