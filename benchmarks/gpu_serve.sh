#!/usr/bin/env bash
# How fast a tuned model answers: usage: benchmarks/gpu_serve.sh WORK MODEL DATA MINUTES [medqa train options]
# Trains unless WORK/run is there, serves it, loads it; with EXPLANATIONS=N it measures so many explanations first.
set -uo pipefail
work=$1 model=$2 data=$3 minutes=$4
shift 4
out=${OUT:-$work/out}
mkdir -p "$work" "$out"
export PYTHONPATH=src:${PYTHONPATH:-} PYTHONUNBUFFERED=1 MEDQA_HOME=$work/home
run=$work/run
if [ ! -e "$run/run.json" ]; then
  SECONDS=0
  python3 -m medqa train --minutes "$minutes" --set model.name="$model" --set data.name="$data" --out "$run" "$@" \
    > "$out/train.log" 2>&1
  echo "training: exit code $?, wall time $SECONDS s"
  grep -v "^Training: \|^Scoring: \|^Calibrating: \|^Preparing" "$out/train.log" | tail -45
fi
cp "$run"/run.json "$out/"
SECONDS=0
timeout 150 python3 benchmarks/serving.py "$run" --seconds "${SECONDS_EACH:-8}" --out "$out"
echo "serving: exit code $?, wall time $SECONDS s"
grep -v "^INFO" "$out/serve.log" | tail -20
if [ -n "${EXPLANATIONS:-}" ]; then
  SECONDS=0
  timeout 250 python3 -m medqa evaluate "$run" --set evaluate.explanations="$EXPLANATIONS" > "$out/evaluate.log" 2>&1
  echo "evaluation: exit code $?, wall time $SECONDS s"
  grep -v "s left" "$out/evaluate.log" | tail -60
fi
tar -C "$run" -czf "$out/run.tar.gz" --exclude=adapter_model.safetensors --exclude=checkpoints .
