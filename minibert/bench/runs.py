"""Runs a list of commands, one after another. Finished runs are skipped. Stopped runs of train.py and
finetune.py are resumed; all other stopped runs start again.

    TEACHER=FOLDER python bench.py runs docs/runs.txt

The list is a text file with one command in each line, without the word `python`. A # starts a comment. A line
that ends with a backslash continues in the next line. $NAME stands for the environment variable NAME.

The output of a run is written to OUT.log, where OUT is the value of --out (for data/download.py:
OUT-download.log). If a run fails, its error is reported, and the next run is started.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from minibert.bench.records import read_run
from minibert.common.console import clock
from minibert.common.disk import disk_errors, read_text
from minibert.common.errors import UserError
from minibert.common.options import option
from minibert.training.run_folder import stop_requests

ROOT = Path(__file__).resolve().parents[2]
# For each script, the file in the --out folder that exists only after a run is finished. "" means that --out
# is this file. None means that the command is always run, because data/download.py skips existing files.
DONE = {"train.py": "summary.json", "finetune.py": "summary.json", "data/prepare.py": "corpus.json",
        "data/augment.py": "", "data/download.py": None}
RESUMED = ("train.py", "finetune.py")


@dataclass(frozen=True)
class RunsBench:
    """Every option of `bench.py runs`."""

    file: str | None = option(None, "file with the commands; the name --file may be left out: bench.py runs "
                                    "FILE")
    show: bool = option(False, "start nothing; show which runs are done or to do, and the time of each "
                               "finished run")

    def __post_init__(self):
        if self.file is None:
            raise UserError("bench.py runs needs a file with the commands, like docs/runs.txt")


class Line(NamedTuple):
    """One command of the list: its script, the words after the script, and the value of --out."""
    script: str
    words: list[str]
    out: Path

    @property
    def done(self) -> bool:
        """True if the command is finished. Always False for data/download.py."""
        return DONE[self.script] is not None and (self.out / DONE[self.script]).exists()

    @property
    def log(self) -> Path:
        """The file to which the output of the run is written."""
        return self.out.with_name(self.out.name + ("-download.log" if DONE[self.script] is None else ".log"))


def read_list(path: Path) -> list[Line]:
    """Reads all commands of a list. Raises `UserError` if the list is empty, or if a command is wrong (for
    example, without --out).
    """
    text = re.sub(r"^\s*#.*\n", "", read_text(path), flags=re.MULTILINE)
    lines = []
    for command in text.replace("\\\n", " ").splitlines():
        where = f"{path}: {command.strip()!r}"
        try:
            words = [os.path.expandvars(word) for word in shlex.split(command, comments=True)]
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        if not words:
            continue
        if words[0] not in DONE:
            raise UserError(f"{where} starts with none of {', '.join(DONE)}")
        if missing := re.search(r"\$\{?(\w+)", " ".join(words)):
            raise UserError(f"{where}: {missing[1]} is not set; give it before the command, as "
                            f"{missing[1]}=... python bench.py runs ...")
        if "--out" not in words[:-1]:
            raise UserError(f"{where} needs --out, the folder that shows whether the run is done")
        line = Line(words[0], words[1:], Path(words[words.index("--out") + 1]))
        if any(line.out == other.out and line.script == other.script for other in lines):
            raise UserError(f"{where}: an earlier command also writes {line.out}")
        lines.append(line)
    if not lines:
        raise UserError(f"{path} holds no command")
    return lines


def shown_state(line: Line) -> str:
    """Returns "done" or "to do". For a finished run of train.py or finetune.py, the text also has the
    duration.
    """
    if line.done and line.script in RESUMED:
        return f"done, took {clock(read_run(line.out).seconds)}"
    return "done" if line.done else "to do"


def last_line(log: Path) -> str:
    """Returns the last non-empty line of a log."""
    return log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-1].strip()


def work(line: Line, stop: list[int]) -> int:
    """Runs one command, waits until it ends, and returns its exit code. `stop` is the list of the signals
    that bench.py has received. If there is a signal, the first one is sent to the command, which then
    stops.
    """
    # a new run ignores --resume, so the command always gets this option
    words = line.words + ["--resume"] * (line.script in RESUMED)
    with disk_errors(line.log):
        line.log.parent.mkdir(parents=True, exist_ok=True)
        log = open(line.log, "a", encoding="utf-8")
    with log:
        print(f"$ {shlex.join([line.script, *words])}", file=log, flush=True)
        # The command gets a new session. Otherwise it would get Ctrl-C twice: from the terminal and from
        # bench.py.
        process = subprocess.Popen([sys.executable, str(ROOT / line.script), *words], stdout=log, stderr=log,
                                   stdin=subprocess.DEVNULL, start_new_session=True)
        signalled = False
        while process.poll() is None:
            if stop and not signalled:
                signalled = True
                process.send_signal(stop[0])
            time.sleep(0.1)
    return process.returncode


def bench_runs(options: RunsBench) -> dict:
    """Runs the commands of the list, and returns the results. Raises `UserError` at the end if a run failed.
    """
    lines = read_list(Path(options.file))
    states, failed = [], []
    with stop_requests() as stop:
        for number, line in enumerate(lines, 1):
            name = f"{number}/{len(lines)} {line.script} {line.out}"
            state = shown_state(line)
            print(f"{name}: {state}", flush=True)
            if not line.done and not options.show:
                begun = time.monotonic()
                code = work(line, stop)
                if stop:
                    print(f"stopped; the same command will continue with {line.out}", flush=True)
                    sys.exit(128 + stop[0])
                if code != 0:
                    failed.append(str(line.log))
                state = "done" if code == 0 else f"failed, exit code {code}: {last_line(line.log)}"
                print(f"{name}: {state}, after {clock(time.monotonic() - begun)}", flush=True)
            states.append({"script": line.script, "out": str(line.out), "state": state})
    if options.show:
        print(f"{sum(not line.done for line in lines)} to do")
    if failed:
        raise UserError(f"{len(failed)} of {len(lines)} runs failed; see {', '.join(failed)}")
    return {"bench": "runs", "file": options.file, "runs": states}
