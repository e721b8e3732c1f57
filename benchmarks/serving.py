"""Load `medqa serve` and time its answers: python benchmarks/serving.py RUN [--seconds 10] [--out FOLDER]

Starts the server on loopback with a free port, and stops it. Questions are the built-in ones, each made
different by a number, so that nothing can be kept from one to the next. Clients are processes of their own,
so that they don't take the server's time within Python. Everything is bounded by --seconds.
"""

import argparse
import http.client
import importlib.resources
import json
import multiprocessing
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

CLIENTS, CONNECTIONS = 8, 16  # processes, and threads in each


def questions():
    lines = importlib.resources.files("medqa").joinpath("data/starter/train.jsonl").read_text("utf-8")
    rows = map(json.loads, lines.splitlines())
    return [
        {"question": row["question"], "options": [row[f"op{a}"] for a in "abcdefghij" if row.get(f"op{a}")]}
        for row in rows
    ]


class Caller:
    """One connection that is kept."""

    def __init__(self, port):
        self.port, self.connection = port, http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def post(self, path, body):
        self.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = self.connection.getresponse()
        return response.status, response.read()

    def get(self, path):
        self.connection.request("GET", path)
        response = self.connection.getresponse()
        return response.status, response.read()


def numbered(question, number):
    return {**question, "question": f"Item {number}. {question['question']}"}


def spread(values):
    ordered = sorted(values)
    return {
        "n": len(values),
        "p50_ms": 1000 * statistics.median(ordered),
        "p90_ms": 1000 * ordered[int(0.9 * len(ordered))],
        "p99_ms": 1000 * ordered[int(0.99 * len(ordered))],
    }


def alone(port, seconds, asked):
    """One asker after the other: the time to the letter."""
    caller, times, end = Caller(port), [], time.monotonic() + seconds
    for number in range(100_000):
        start = time.monotonic()
        status, _ = caller.post("/v1/answer", numbered(asked[number % len(asked)], number))
        times.append(time.monotonic() - start)
        assert status == 200, status
        if time.monotonic() > end:
            break
    return spread(times[3:])


def _ask_on(port, start, seconds, per_request, asked, first, found):
    """Ask over many connections until the time is over."""
    import threading

    results, lock = {"answers": 0, "times": [], "refused": 0}, threading.Lock()

    def one(offset):
        caller, number = Caller(port), first + offset * 1_000_003
        time.sleep(max(0.0, start - time.time()))
        answers, times, refused = 0, [], 0
        while time.time() < start + seconds:
            number += per_request
            some = [numbered(asked[(number + n) % len(asked)], number + n) for n in range(per_request)]
            began = time.monotonic()
            if per_request == 1:
                status, body = caller.post("/v1/answer", some[0])
            else:
                status, body = caller.post("/v1/answers", {"questions": some})
            times.append(time.monotonic() - began)
            answered = body.count(b'"letter"') if status == 200 else 0
            answers += answered
            refused += per_request - answered
            assert status in (200, 429), status
        with lock:
            results["answers"] += answers
            results["times"] += times
            results["refused"] += refused

    threads = [threading.Thread(target=one, args=(n,)) for n in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.put(results)


def load(port, seconds, asked, per_request=1, clients=CLIENTS):
    """Many askers at once: answers a second."""
    context = multiprocessing.get_context("spawn")
    found, start = context.Queue(), time.time() + 3
    processes = [
        context.Process(
            target=_ask_on, args=(port, start, seconds, per_request, asked, 10_000_019 * n, found)
        )
        for n in range(clients)
    ]
    for process in processes:
        process.start()
    parts = [found.get(timeout=seconds + 90) for _ in processes]
    for process in processes:
        process.join()
    took = max(seconds, time.time() - start)
    times = [value for part in parts for value in part["times"]]
    return {
        "connections": clients * CONNECTIONS,
        "questions_per_request": per_request,
        "answers_per_s": sum(part["answers"] for part in parts) / took,
        "refused": sum(part["refused"] for part in parts),
        **spread(times),
    }


def explain(port, model, question):
    """Stream one explanation: tokens a second from the first piece on, and the time to the letter."""
    text = (
        question["question"]
        + "\n"
        + "\n".join(f"{a}. {o}" for a, o in zip("ABCDEFGHIJ", question["options"], strict=False))
    )
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    start = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    times, tokens = [], 0
    for line in response:
        if line.startswith(b"data: {"):
            part = json.loads(line[6:])
            if part.get("usage"):
                tokens = part["usage"]["completion_tokens"]
            elif part["choices"] and part["choices"][0]["delta"].get("content"):
                times.append(time.monotonic())
    # The first text is the verdict, the last one the notice, which follows the check.
    writing = times[-2] - times[0]
    return {"tokens": tokens, "seconds": writing, "letter_s": times[0] - start}


def explanations(port, model, asked, seconds, at_once):
    """Explanations side by side: tokens a second of each, and of all."""
    import concurrent.futures

    end, found = time.monotonic() + seconds, []

    def one(first):
        number = first
        while time.monotonic() < end:
            found.append(explain(port, model, numbered(asked[number % len(asked)], number)))
            number += at_once

    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, range(at_once)))
    took = time.monotonic() - start
    rates = [one["tokens"] / one["seconds"] for one in found if one["seconds"] > 0]
    return {
        "at_once": at_once,
        "explanations": len(found),
        "tokens": sum(one["tokens"] for one in found),
        "tokens_per_s_each": statistics.median(rates),
        "tokens_per_s_all": sum(one["tokens"] for one in found) / took,
        "letter_p50_ms": 1000 * statistics.median(one["letter_s"] for one in found),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--seconds", type=float, default=10, help="for each measurement")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="processes that ask under load")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--engine", help="passed on to medqa serve")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = (arguments.out / "serve.log").open("w")
    command = [sys.executable, "-m", "medqa", "serve", arguments.run, "--port", "0"]
    command += ["--engine", arguments.engine] if arguments.engine else []
    began = time.monotonic()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        port = next(
            (
                int(m[1])
                for line in server.stdout
                if (m := re.search(r"http://127\.0\.0\.1:(\d+)/$", line.strip()))
            ),
            None,
        )
        if port is None:
            sys.exit(f"the server did not start: {(arguments.out / 'serve.log').read_text()[-2000:]}")
        caller = Caller(port)
        while True:
            try:
                if caller.get("/ready")[0] == 200:
                    break
            except OSError:
                caller = Caller(port)
            time.sleep(0.05)
        results = {"ready_after_s": time.monotonic() - began}
        asked, seconds = questions(), arguments.seconds
        model = json.loads(caller.get("/v1/models")[1])["data"][0]["id"]
        for name, measure in (
            ("letter alone", lambda: alone(port, seconds, asked)),
            ("letters under load", lambda: load(port, seconds, asked, clients=arguments.clients)),
            (
                "letters in batches of 64",
                lambda: load(port, seconds, asked, 64, max(1, arguments.clients // 8)),
            ),
            ("explanation alone", lambda: explanations(port, model, asked, seconds, 1)),
            ("16 explanations at once", lambda: explanations(port, model, asked, seconds, 16)),
        ):
            results[name] = measure()
            print(name, json.dumps(results[name]), flush=True)
        results["metrics"] = Caller(port).get("/metrics")[1].decode()
    finally:
        server.terminate()
        server.wait(60)
    (arguments.out / "serving.json").write_text(json.dumps(results, indent=1))
    print("ready after", round(results["ready_after_s"], 1), "s; stopped with code", server.returncode)


if __name__ == "__main__":
    main()
