#!/usr/bin/env bash
# The measurements behind docs/experiments.md "2,000 rows, twice": choose on held-out training rows, then measure.
# usage: benchmarks/first_gpu.sh choose|measure MODEL_DIR DATA_DIR OUT
set -euo pipefail
step=$1 model=$2 data=$3 out=$4
common=(--recipe medmcqa-2k --set "model.name=$model" --set "data.name=$data" ${EXTRA:-})
if [ "$step" = choose ]; then
  python3 benchmarks/quality.py "$out/choose" "${common[@]}" --dev "${DEV:-2000}" --parallel 6 \
    "lr3e-4_w.5=train.learning_rate=3e-4" \
    "lr3e-4_w.8=train.learning_rate=3e-4,train.answer_weight=0.8" \
    "lr3e-4_w.2=train.learning_rate=3e-4,train.answer_weight=0.2" \
    "lr1e-4_w.5=train.learning_rate=1e-4" \
    "lr1e-4_w.8=train.learning_rate=1e-4,train.answer_weight=0.8" \
    "lr6e-4_w.5=train.learning_rate=6e-4"
else
  # Alone on the device, so that the times count.
  python3 benchmarks/quality.py "$out/measure" "${common[@]}" "seed0=${BEST:-}"
  cat "$out/measure/seed0.log"
  python3 - "$out/measure/seed0" <<'PY'
import json, sys
run = json.load(open(sys.argv[1] + "/run.json")); report = json.load(open(sys.argv[1] + "/report.json"))
print(json.dumps({"training": run["training"], "device": run["device"], "scoring_seconds": report["seconds"]}, indent=1))
PY
  python3 benchmarks/ask_examples.py "$out/measure/seed0" 5 --openings "${OPENINGS:-60}"
  python3 benchmarks/quality.py "$out/seeds" "${common[@]}" --parallel 2 \
    "seed1=${BEST:+$BEST,}train.seed=1" "seed2=${BEST:+$BEST,}train.seed=2"
fi
