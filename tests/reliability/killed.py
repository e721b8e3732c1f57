"""Pieces of work to be killed at, each in a process of its own."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

from medqa.data.build import build_corpus
from medqa.data.folder import write_corpus
from medqa.errors import RunError
from medqa.evaluate import report
from medqa.evaluate.run import evaluate
from medqa.runs import RunFolder
from medqa.train.run import resume, train

# Forked from a process that has imported all and done nothing: a try costs no import of torch, and none hangs
# because a thread of this one held a lock at that moment.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        __name__,
        "medqa.evaluate.calibrate",
        "medqa.publish.export",
        "peft",
        "transformers.models.qwen3.modeling_qwen3",
    ]
)


def _begin(work, arguments, options):
    os.setsid()  # what it starts itself is killed with it
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    work(*arguments, **options)


def killed_after(seconds, work, *arguments, **options):
    """Kill it after so many seconds; whether it had ended by itself before, and well."""
    process = CONTEXT.Process(target=_begin, args=(work, arguments, options))
    process.start()
    process.join(seconds)
    if process.exitcode is not None:
        assert process.exitcode == 0
        return True
    pid = process.pid
    os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, signal.SIGKILL)
    process.join()
    return False


def _die_at_write(number, work, arguments, options):
    """Do it, and be killed as its so many-th file is flushed to the disk or gets its name."""
    left = [number]

    def counted(original):
        def write(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return write

    os.fsync = counted(os.fsync)
    Path.replace = counted(Path.replace)
    Path.unlink = counted(Path.unlink)
    shutil.rmtree = counted(shutil.rmtree)
    _begin(work, arguments, options)


def killed_at_write(number, work, *arguments, **options):
    """Kill it at its so many-th write; whether it had ended before, and well."""
    process = CONTEXT.Process(target=_die_at_write, args=(number, work, arguments, options))
    process.start()
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode == 0


def train_on(config, path):
    """Go on with a run, or begin it."""
    try:
        resume(path)
    except RunError:  # nothing is there yet, or it ended before training began, as the hint says
        shutil.rmtree(path, ignore_errors=True)
        train(config, path, "medmcqa")


def begin_run(path, config):
    """Make a run folder."""
    RunFolder.create(path, config, "medmcqa")


def evaluate_soon(run):
    """Evaluate, with few draws for the intervals."""
    report.NUM_DRAWS = 40
    evaluate(run)


def build(config, out):
    """Build a folder of data."""
    write_corpus(build_corpus(config, 0), config, out)
