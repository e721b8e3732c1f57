#!/usr/bin/env bash
# Larger models' memory, two processes on one GPU, and tests/gpu: usage: benchmarks/gpu_scale.sh WORK MODEL_CONFIG DATA STAGE...
# STAGE is memory, share, shard or tests. Logs and tables go to $OUT (default: WORK/out).
set -uo pipefail
work=$1 config=$2 data=$3
shift 3
out=${OUT:-$work/out}
mkdir -p "$work" "$out"
export PYTHONPATH=src:benchmarks:${PYTHONPATH:-} PYTHONUNBUFFERED=1 MEDQA_HOME=$work/home
for stage in "$@"; do
  echo "== $(date +%T) $stage"
  case $stage in
    memory) timeout 420 python3 benchmarks/scale.py memory "$work" "$config" "$data" ${SIZES:-} ;;
    share) timeout 200 python3 benchmarks/scale.py processes "$work" "$config" "$data" 2 --share ;;
    shard) SCALE_ROWS=128 timeout 240 python3 benchmarks/scale.py processes "$work" "$config" "$data" 2 --share model.shard=true train.fast_path=false ;;
    tests) timeout 300 python3 -m pytest -q -m gpu ${TESTS:-tests/gpu} -p no:cacheprovider ;;
  esac 2>&1 | grep -v "it/s\]" | tee "$out/$stage.log"
  cat "$work"/*.log 2>/dev/null > "$out/programs.log"
done
echo "== $(date +%T) end"
