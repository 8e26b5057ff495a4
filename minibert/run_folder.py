"""The folder of a run: opened once, or again to resume;
metrics.jsonl cut back to the step that is resumed from.
"""

import contextlib
import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from minibert.disk import write_text
from minibert.errors import UserError
from minibert.tokenizer import read_json


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """SIGTERM and SIGINT fill a list instead of ending the process, so that a loop can end its step first.

    What comes after the loop is ended by them as usual.
    """
    stop: list[int] = []
    before = {sign: signal.signal(sign, lambda number, frame: stop.append(number))
              for sign in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def too_many_skips(skipped: int, step: int) -> UserError:
    """What to say when loss or gradient were not finite in `skipped` steps running."""
    return UserError(f"loss or gradient not finite in {skipped} steps running (step {step}); lower --lr, or "
                     "use --precision fp32; checkpoints are whole, --resume goes on from the last")


def say(*words) -> None:
    """Prints, on the first rank only."""
    if os.environ.get("RANK", "0") == "0":
        print(*words, flush=True)


def open_run(out: Path, options, may_change: set[str]) -> None:
    """Makes the run folder; an existing run needs --resume,
    and, but for `may_change`, the options it was started with.
    """
    if (out / "config.json").exists():
        if not options.resume:
            raise UserError(f"{out} holds a run already: continue it with --resume, or choose another --out")
        before = read_json(out / "config.json").get("options", {})
        now = json.loads(json.dumps(dataclasses.asdict(options)))
        other = [f"--{name.replace('_', '-')} {before.get(name)}" for name in now
                 if name not in may_change and now[name] != before.get(name)]
        if other:
            raise UserError(f"the run in {out} was started with {', '.join(other)}: resume it with the same")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from None


def cut_metrics(path: Path, step: int) -> None:
    """Keeps the rows of metrics.jsonl up to `step`, so that what a resumed run repeats is not there twice."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError):
            break  # the last line of a killed run may be half a line
        kept.append(line + "\n")
    write_text(path, "".join(kept))


def last_tokens(metrics: Path) -> int:
    """Tokens seen according to the last row of metrics.jsonl."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    return json.loads(lines[-1])["tokens"] if lines else 0
