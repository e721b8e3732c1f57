"""What the same result twice costs on this device.

usage: determinism.py WORK MODEL_CONFIG DATA [ROWS] [REPEATS]

Trains a model of random weights, of MODEL_CONFIG's shape, with and without train.deterministic, each REPEATS
times, and compares adapters and tokens a second.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from speed import write_random_model


def main(work, config, data, num_rows="4000", repeats="2"):
    model = Path(work) / "model"
    if not model.exists():
        write_random_model(Path(config), model)
    for deterministic in ("false", "true"):
        found = []
        for number in range(int(repeats)):
            run = Path(work) / f"run-{deterministic}-{number}"
            settings = [
                f"model.name={model}",
                f"data.name={data}",
                f"data.max_train_rows={num_rows}",
                "data.calibration_share=0",
                "data.selection_share=0",
                "train.max_length_tokens=256",
                f"train.deterministic={deterministic}",
            ]
            words = [word for setting in settings for word in ("--set", setting)]
            start = time.monotonic()
            subprocess.run([sys.executable, "-m", "medqa", "train", *words, "--out", str(run)], check=True)
            record = json.loads((run / "run.json").read_text())
            last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
            found.append(record["adapter_sha256"])
            print(
                f"deterministic={deterministic}: {record['training']['tokens_per_second']:,.0f} tokens/s, "
                f"path {record['training']['path']['path']}, last loss {last!r}, adapter {found[-1][:12]}, "
                f"{time.monotonic() - start:.0f} s",
                flush=True,
            )
        print(
            f"deterministic={deterministic}: {'the same' if len(set(found)) == 1 else 'different'} adapters"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
