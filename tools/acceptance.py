"""The story a user lives, on real parts: usage: python tools/acceptance.py [FOLDER]

Clones this checkout into FOLDER (a temporary one if not given), installs it there, and goes from the
quickstart to a published and reproduced model. Every command is printed with what it said and how long it
took; the first that fails ends it. The Hub is a local stand-in, the browser is Chromium if there is one.
"""

import contextlib
import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STARTED = time.monotonic()
SHOWN_LINES = 12
COLUMNS = {
    "question": "stem",
    "option_a": "first",
    "option_b": "second",
    "option_c": "third",
    "option_d": "fourth",
    "answer": "solution",
    "explanation": "why",
    "subject": "department",
}


def chapter(title):
    print(f"\n## {title} ({time.monotonic() - STARTED:.0f} s so far)\n", flush=True)


def say(text):
    print(text, flush=True)


class Story:
    """A clone with its own environment."""

    def __init__(self, folder):
        self.clone = folder / "medqa"
        self.bin = self.clone / ".venv" / "bin"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "PYTHON"))},
            "MEDQA_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def run(self, *words, shown=SHOWN_LINES, **environment):
        """Run a command in the clone, show its last lines, and stop if it fails."""
        say(f"```\n$ {' '.join(map(str, words))}")
        start = time.monotonic()
        done = subprocess.run(
            [str(word) for word in words],
            cwd=self.clone if self.clone.exists() else None,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line for line in (done.stdout or done.stderr).splitlines() if line.strip()]
        say("\n".join(lines[-shown:]))
        say(f"```\nexit code {done.returncode}, {time.monotonic() - start:.0f} s")
        if done.returncode:
            say(f"\nFAILED:\n{done.stderr[-3000:]}")
            sys.exit(1)
        return done.stdout

    def medqa(self, *words, **options):
        return self.run(self.bin / "medqa", *words, **options)

    @contextlib.contextmanager
    def serving(self, run):
        """Serve a run on a free port of this machine; its address."""
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        process = subprocess.Popen(
            [self.bin / "medqa", "serve", run, "--port", str(port)],
            cwd=self.clone,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/ready", timeout=2).close()
                    break
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def write_own_csv(story):
    """A folder with a hospital's own column names, of the questions that come with the program."""
    folder = story.clone / "own"
    folder.mkdir()
    for split in ("train", "validation"):
        source = story.clone / "src" / "medqa" / "data" / "starter" / f"{split}.jsonl"
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            writer.writerow(COLUMNS.values())
            for row in rows:
                options = [row[name] for name in ("opa", "opb", "opc", "opd")]
                key = "ABCD"[row["cop"]]
                writer.writerow([row["question"], *options, key, row["exp"], row["subject_name"]])
    return folder


def ask_over_http(url):
    question = {
        "question": "Lack of which vitamin causes scurvy?",
        "options": ["Vitamin A", "Vitamin C", "Vitamin D"],
    }
    request = urllib.request.Request(
        f"{url}/v1/answer", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer = json.load(response)
    say(f"POST /v1/answer: {json.dumps(answer, ensure_ascii=False)[:400]}")
    if answer["letter"] not in "ABC":
        sys.exit("the API gave no letter")


def look_with_a_browser(story, url):
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if chromium is None:
        say("No browser on this machine: the page was not looked at.")
        return
    picture = story.clone / "page.png"
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"]
    subprocess.run(
        [chromium, *words, "--virtual-time-budget=15000", f"--screenshot={picture}", url],
        capture_output=True,
        check=False,
        timeout=90,
    )
    say(f"The page as a picture: {picture.name}, {picture.stat().st_size if picture.exists() else 0:,} bytes")
    if not picture.exists() or picture.stat().st_size < 10_000:
        sys.exit("the page shows nothing")


def publish_to_a_local_hub(story, run):
    """Push through huggingface_hub itself to the tests' stand-in, and use it from there."""
    sys.path.insert(0, str(ROOT / "tests"))
    from hub_stand_in import TOKEN, HubStandIn

    with HubStandIn().running() as hub:
        hub_settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(story.clone / "hf-home")}
        story.medqa("publish", run, "--to", "ORG/own-model", "--push", "--public", shown=30, **hub_settings)
        question = ("-q", "Which organ makes insulin?", "-o", "Liver", "-o", "Pancreas", "--no-explain")
        story.medqa("ask", "hub:ORG/own-model", *question, **hub_settings)


def main(folder):
    story = Story(folder)
    say(
        "# Acceptance\n\nWhat a user lives through, on this machine, from a fresh clone to a published model."
    )
    chapter("Fresh clone, quickstart")
    story.run("git", "clone", "-q", ROOT, story.clone)
    story.run("make", "quickstart", shown=60)
    chapter("An own CSV")
    own = write_own_csv(story)
    maps = [word for ours, theirs in COLUMNS.items() for word in ("--map", f"{ours}={theirs}")]
    story.medqa("data", "--check", own / "train.csv", *maps, shown=20)
    chapter("Train with a budget, on it")
    run = "runs/own"
    named = ", ".join(f"{ours}: {theirs}" for ours, theirs in COLUMNS.items())
    data = [f"data.name={own}", f"data.map={{{named}}}", "data.licence=apache-2.0", "data.max_eval_rows=null"]
    words = [word for setting in data for word in ("--set", setting)]
    story.medqa("train", "quickstart", *words, "--minutes", "4", "--out", run, shown=40)
    chapter("Measure")
    few = ["--set", "evaluate.explanations=4", "--set", "evaluate.traps=20", "--set", "evaluate.orders=1"]
    story.medqa("evaluate", run, *few, shown=40)
    chapter("Serve, and a browser")
    with story.serving(run) as url:
        ask_over_http(url)
        look_with_a_browser(story, url)
    chapter("Export")
    story.medqa("export", run, "--to", "merged", "--questions", "40")
    chapter("Publish to a local Hub")
    publish_to_a_local_hub(story, run)
    chapter("Reproduce")
    story.medqa("reproduce", run, "--out", "runs/again", shown=40)
    minutes = (time.monotonic() - STARTED) / 60
    say(f"\n## Done\n\nAll of it in {minutes:.1f} minutes.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True)
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
