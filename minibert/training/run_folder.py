"""Creates and checks the folder of a run, and reads and writes metrics.jsonl."""

import contextlib
import json
import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from minibert.common.console import say
from minibert.common.disk import disk_errors, read_json, read_text, write_text
from minibert.common.errors import UserError
from minibert.common.options import flag
from minibert.hub.weight_files import weights_hash

@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A context manager that delays the signals SIGTERM and SIGINT, so that a training loop can finish its
    step. It yields a list, and adds each received signal to the list. If the `with` block ends without an
    exception, the first signal in the list is raised again.
    """
    stop: list[int] = []
    before = {sign: signal.signal(sign, lambda number, frame: stop.append(number))
              for sign in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(sign) != signal.SIG_IGN}
    try:
        yield stop
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
    if stop:
        signal.raise_signal(stop[0])


def end_stopped(stop: list[int], after: str) -> NoReturn:
    """Ends the process with the exit code 128 plus the number of the first signal in `stop`. If `stop` is
    empty, another rank received a signal, and the exit code is 143 (for SIGTERM).
    """
    say(f"\nstopped after {after}; continue with --resume")
    sys.exit(128 + (stop[0] if stop else signal.SIGTERM))


def open_run(out: Path, options: dict, may_change: set[str]) -> None:
    """Creates the run folder. Raises `UserError` if the folder already has a run and the option `resume` is
    false. Also raises `UserError` if an option that is not in `may_change` has another value than at the
    start of the run.
    """
    if (out / "config.json").exists():
        if not options["resume"]:
            raise UserError(f"{out} holds a run already: continue it with --resume, or choose another --out")
        before, now = read_json(out / "config.json")["options"], json.loads(json.dumps(options))
        other = [as_given(name, before.get(name)) for name in now
                 if name not in may_change and now[name] != before.get(name)]
        if other:
            raise UserError(f"the run in {out} was started {', '.join(other)}: resume it in the same way")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()


def as_given(name: str, value) -> str:
    """Returns how an option was given, for an error message: "with --layers 3" or "without --layers"."""
    if value in (None, [], False):
        return f"without {flag(name)}"
    return f"with {flag(name)} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def check_corpus(out: Path, fingerprint: str) -> None:
    """Raises `UserError` if the run in `out` was started with a corpus of another `fingerprint` (a hash)."""
    if (out / "config.json").exists() and read_json(out / "config.json")["corpus"] != fingerprint:
        raise UserError(f"the corpus is not the one that the run in {out} was started with; give the same "
                        "text, or start a new run with another --out")


def check_unchanged(out: Path, entry: str, now: dict[str, str], what: str) -> None:
    """Raises `UserError` if one of the hashes `now` differs from its value at the start of the run in `out`.
    `now` maps names to hashes. `entry` is the field of config.json with the hashes from the start of the run.
    The error message begins with `what`, in which {} stands for the name of the changed hash.
    """
    before = read_json(out / "config.json").get(entry, {}) if (out / "config.json").exists() else now
    for name, value in now.items():
        if before.get(name) != value:
            raise UserError(f"{what.format(name)} are not those that the run in {out} was started with; give "
                            "the same files, or start a new run with another --out")


def check_weights(out: Path, models: dict[str, str | Path | None]) -> dict[str, str]:
    """Returns a dict from options, such as "teacher", to hashes of weights. `models` maps each option to the
    folder or hub name of its model (None: no model). Raises `UserError` if the weights have changed since the
    start of the run.
    """
    now = {option: weights_hash(name) for option, name in models.items() if name is not None}
    check_unchanged(out, "weights", now, "the weights of --{}")
    return now


def cut_metrics(path: Path, step: int) -> None:
    """Removes the rows of all steps after `step` from metrics.jsonl. A resumed run repeats these steps."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows_up_to(path, step)))


def rows_up_to(path: Path, step: float = math.inf) -> list[dict]:
    """Returns the rows of metrics.jsonl up to the step `step`. If a killed run left an incomplete last line,
    this line is ignored.
    """
    rows = []
    for line in read_text(path).split("\n") if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return [row for row in rows if row["step"] <= step]


# the fields of a row of metrics.jsonl that are neither loss terms nor accuracies
COLUMNS = ("step", "tokens", "loss", "grad_norm", "skipped", "lr", "stage", "tokens_per_second", "held_out",
           "dev")


def terms_of_row(row: dict) -> list[str]:
    """Returns the names of the loss terms (and accuracies) in a row of metrics.jsonl."""
    return [name for name in row if name not in COLUMNS]


def in_words(row: dict) -> str:
    """Returns the progress line for one row of metrics.jsonl."""
    terms = " ".join(f"{name} {row[name]:.3f}" for name in terms_of_row(row))
    return (f"loss {row['loss']:.3f} ({terms})  lr {row['lr']:.1e}  |g| {row['grad_norm']:.2f}  "
            f"{row['tokens_per_second']:,.0f} tok/s")


def append_row(path: Path, row: dict) -> None:
    """Adds one row to metrics.jsonl. Raises `UserError` if the row cannot be written."""
    with disk_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def last_tokens(metrics: Path) -> int:
    """Returns how many tokens the run has read, or 0 if metrics.jsonl has no rows."""
    rows = rows_up_to(metrics)
    return rows[-1]["tokens"] if rows else 0
