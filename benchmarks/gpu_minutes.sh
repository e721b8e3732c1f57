#!/usr/bin/env bash
# What five minutes give: usage: benchmarks/gpu_minutes.sh WORK MODEL DATA MINUTES [medqa options]
# Trains and scores within the time, then measures scoring alone and writes explanations. Results in $OUT.
set -uo pipefail
work=$1 model=$2 data=$3 minutes=$4
shift 4
out=${OUT:-$work/out}
mkdir -p "$work" "$out"
export PYTHONPATH=src:benchmarks:${PYTHONPATH:-} PYTHONUNBUFFERED=1 MEDQA_HOME=$work/home
run=$work/run
SECONDS=0
python3 -m medqa train --minutes "$minutes" --set model.name="$model" --set data.name="$data" --out "$run" "$@" \
  > "$out/train.log" 2>&1
echo "exit code $?, whole wall time $SECONDS s" | tee -a "$out/train.log"
grep -v "^Training: \|^Scoring: " "$out/train.log" | head -60
cp "$run"/run.json "$run"/report*.json "$run"/metrics.jsonl "$run"/loss.png "$out/" 2>/dev/null
timeout 100 python3 benchmarks/scoring.py "$run" 2>&1 | tee "$out/scoring.log" | grep -v "^Scoring"
timeout 100 python3 benchmarks/ask_examples.py "$run" 6 --openings 40 > "$out/explanations.md" 2>&1
tail -3 "$out/explanations.md"
