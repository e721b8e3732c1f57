"""A server under load for a while: usage: python tools/soak.py [MINUTES [WRONG_REQUESTS]]   (20 and 10,000)

Trains the built-in model for a few steps, serves it on this machine with an audit log, and sends it wrong
requests of every kind and right ones beside them, 16 at a time. It fails if anything is answered with a 5xx,
a right question is answered otherwise than at first, a record of the audit log is missing or there twice,
or the server's memory grows.
"""

import asyncio
import collections
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "serve"))

from storm import QUESTION, Storm, good_bodies  # noqa: E402

SAMPLE_S = 10
TIMEOUT_S = 300  # how long an answer takes is measured elsewhere
MAX_GROWTH_MIB = 64  # from the second quarter of the time to the last
TRAINING = ["data.max_train_rows=32", "data.calibration_share=0", "data.selection_share=0"]
SERVING = ["serve.max_explanation_tokens=8"]


@contextlib.contextmanager
def served(folder):
    """Serve a run of a few steps; its process, address and audit log."""
    run, audit, log = folder / "run", folder / "audit.jsonl", folder / "server.log"
    words = [word for setting in (*TRAINING, *SERVING) for word in ("--set", setting)]
    medqa = [sys.executable, "-m", "medqa"]
    subprocess.run([*medqa, "train", "quickstart", *words, "--out", str(run)], check=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [*medqa, "serve", str(run), "--port", str(port), "--audit-log", str(audit)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            time.sleep(0.5)
        yield process, url, audit, log
    finally:
        process.terminate()
        process.wait(60)


def watch(process, samples, done):
    """Note the server's memory in MiB, every few seconds."""
    server, start = psutil.Process(process.pid), time.monotonic()
    while not done.wait(SAMPLE_S):
        samples.append((time.monotonic() - start, server.memory_info().rss / 2**20, server.num_fds()))


def main(minutes=20.0, num_bad=10_000):
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as (process, url, audit, log):
        with httpx.Client(base_url=url, timeout=60) as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
            expected = client.post("/v1/answer", json={**QUESTION, "explain": True}).json()
        storm, samples, done = Storm(url, good_bodies(model), expected, 422), [], threading.Event()
        watcher = threading.Thread(target=watch, args=(process, samples, done))
        watcher.start()
        start = time.monotonic()
        try:
            asyncio.run(storm.run(num_bad, 60 * minutes, TIMEOUT_S))
        finally:
            done.set()
            watcher.join()
        seconds = time.monotonic() - start
        time.sleep(5)
        written = collections.Counter(
            (line["id"], line["event"]) for line in map(json.loads, audit.read_text().splitlines())
        )
        told = log.read_text()
    rss = [mib for _, mib, _ in samples]
    quarter = max(1, len(rss) // 4)
    early, late = sum(rss[quarter : 2 * quarter]) / quarter, sum(rss[-quarter:]) / quarter
    print(f"{num_bad:,} wrong and {storm.num_good:,} right requests in {seconds / 60:.1f} minutes")
    print("status codes:", dict(sorted(storm.statuses.items())))
    print(f"audit log: {len(storm.events):,} records wanted, {len(written):,} written")
    print(f"memory, MiB: {rss[0]:.0f} at first, {early:.0f} in the second quarter, {late:.0f} in the last")
    print(f"open files: {samples[0][2]} at first, {samples[-1][2]} at last")
    faults = []
    if missing := [key for key in storm.events if not written[key]]:
        faults.append(f"{len(missing)} records are missing in the audit log")
    if twice := [key for key, number in written.items() if number != 1]:
        faults.append(f"{len(twice)} records are there more than once")
    if late - early > MAX_GROWTH_MIB:
        faults.append(f"memory grew by {late - early:.0f} MiB")
    if "Traceback" in told:
        faults.append("a traceback in the server's log:\n" + told[-3000:])
    sys.exit("; ".join(faults) or 0)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3]))
