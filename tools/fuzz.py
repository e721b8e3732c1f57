"""Fuzz what reads files and words from outside, guided by coverage: tools/fuzz.py SECONDS [PARSER ...]

Each parser in tests/reliability/parsers.py for so many seconds, from what its corpus holds already. Inputs
that lead somewhere new are added to the corpus, the last found, as they lie deepest; one that raises what is
no MedQAError stands in the folder `fuzz-failures` afterwards. Needs atheris (pip install atheris), which has
no wheel for every Python.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "reliability")]
FAILURES = ROOT / "fuzz-failures"
MAX_BYTES = 16_384
MAX_FILES = 16  # a corpus is run by every `make test`


def fuzz_one(name, seconds):
    """Fuzz one parser in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["medqa"]):
        import parsers
    folder = Path(tempfile.mkdtemp(prefix="medqa-fuzz-"))
    corpus, found = parsers.CORPUS / name, folder / "found"
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir()
    FAILURES.mkdir(exist_ok=True)
    parse = parsers.PARSERS[name]
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES}",
        f"-artifact_prefix={FAILURES}/{name}-",
        "-timeout=60",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    work = folder / "work"
    work.mkdir()
    atheris.Setup([name, *options, str(found), str(corpus)], lambda data: parse(data, work))
    print(f"found={found}", flush=True)
    atheris.Fuzz()


def keep(name, found):
    """Add what was found last to the corpus, as long as there is room."""
    corpus = ROOT / "tests" / "reliability" / "corpus" / name
    room = MAX_FILES - len(list(corpus.iterdir()))
    kept = sorted(found.iterdir(), key=lambda file: -file.stat().st_mtime_ns)[: max(room, 0)]
    for file in kept:
        (corpus / file.name[:12]).write_bytes(file.read_bytes())
    return len(kept)


def main(seconds, names):
    """Fuzz each parser in a process of its own."""
    from parsers import PARSERS

    failed = []
    for name in names or PARSERS:
        command = [sys.executable, __file__, seconds, name]
        done = subprocess.run(
            command, env={**os.environ, "MEDQA_FUZZ_ONE": "1"}, capture_output=True, text=True, check=False
        )
        told = (done.stdout + done.stderr).splitlines()
        if not (found := [line for line in told if line.startswith("found=")]):
            sys.exit("\n".join(told[-20:]))
        numbers = {
            line.split()[0][6:-1]: line.split()[-1]
            for line in told
            if line.startswith(("stat::number_of_executed_units", "stat::peak_rss_mb"))
        }
        num_kept = keep(name, Path(found[0].partition("=")[2]))
        print(f"{name}: {numbers}, {num_kept} kept, exit {done.returncode}", flush=True)
        if done.returncode:
            failed.append(name)
            print("\n".join(told[-40:]), flush=True)
    sys.exit(f"failed: {', '.join(failed)}; see {FAILURES}" if failed else 0)


if __name__ == "__main__":
    if len(sys.argv) < 2 or not sys.argv[1].isdigit():
        sys.exit(__doc__)
    if os.environ.get("MEDQA_FUZZ_ONE"):
        fuzz_one(sys.argv[2], sys.argv[1])
    else:
        main(sys.argv[1], sys.argv[2:])
