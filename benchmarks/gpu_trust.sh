#!/usr/bin/env bash
# How far a model of five minutes can be trusted: usage: benchmarks/gpu_trust.sh WORK MODEL DATA MINUTES [medqa train options]
# Trains, calibrates and measures everything, and brings report, predictions and explanations. Results in $OUT.
set -uo pipefail
work=$1 model=$2 data=$3 minutes=$4
shift 4
out=${OUT:-$work/out}
mkdir -p "$work" "$out"
export PYTHONPATH=src:${PYTHONPATH:-} PYTHONUNBUFFERED=1 MEDQA_HOME=$work/home
run=$work/run
SECONDS=0
python3 -m medqa train --minutes "$minutes" --set model.name="$model" --set data.name="$data" --out "$run" "$@" \
  > "$out/train.log" 2>&1
echo "training: exit code $?, wall time $SECONDS s"
grep -v "^Training: \|^Scoring: \|^Calibrating: \|^Preparing" "$out/train.log" | head -50
cp "$run"/run.json "$out/"
SECONDS=0
timeout 250 python3 -m medqa evaluate "$run" --set evaluate.explanations="${EXPLANATIONS:-500}" > "$out/evaluate.log" 2>&1
echo "evaluation: exit code $?, wall time $SECONDS s"
grep -v "s left" "$out/evaluate.log" | tail -100
tar -C "$run" -czf "$out/run.tar.gz" report.json report.html predictions.jsonl explanations.jsonl \
  adapter/calibration.json recipe.yaml metrics.jsonl data.json
