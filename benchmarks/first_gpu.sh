#!/usr/bin/env bash
# The measurements behind "2,000 rows, twice" in docs/experiments.md: choose on held-out training rows, then measure.
# usage: benchmarks/first_gpu.sh choose|measure MODEL_DIR DATA_DIR OUT
set -euo pipefail
step=$1 model=$2 data=$3 out=$4
common=(--recipe medmcqa-2k --set "model.name=$model" --set "data.name=$data" ${EXTRA:-})
if [ "$step" = choose ]; then
  # One at a time: processes that share a GPU slow each other down more than they gain.
  python3 benchmarks/quality.py "$out/choose" "${common[@]}" --dev "${DEV:-2000}" \
    "lr5e-5=train.learning_rate=5e-5" \
    "lr1e-4=train.learning_rate=1e-4" \
    "lr3e-4_w.2=train.learning_rate=3e-4,train.answer_weight=0.2" \
    "lr3e-4_w.8=train.learning_rate=3e-4,train.answer_weight=0.8"
else
  python3 benchmarks/quality.py "$out/measure" "${common[@]}" "seed0=train.seed=0" "seed1=train.seed=1"
  cat "$out/measure/seed0.log"
  python3 - "$out/measure/seed0" <<'PY'
import json, sys
run = json.load(open(sys.argv[1] + "/run.json")); report = json.load(open(sys.argv[1] + "/report.json"))
print(json.dumps({"training": run["training"], "device": run["device"], "scoring_seconds": report["seconds"]}, indent=1))
PY
  python3 benchmarks/ask_examples.py "$out/measure/seed0" 5 --openings "${OPENINGS:-60}"
fi
