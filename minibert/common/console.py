"""Prints messages and progress, and returns tables, times and numbers as text. This module does not import
torch, so that data/prepare.py starts fast.
"""

import os
import sys
import time


def say(*words, sep: str = " ") -> None:
    """Prints `words` if this process is the first rank."""
    if first_rank():
        print(*words, sep=sep, flush=True)


def first_rank() -> bool:
    """Returns True in the first rank of torchrun, and in a run without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def clock(seconds: float) -> str:
    """Returns seconds as text in the form h:mm:ss."""
    seconds = int(seconds + 0.5)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def table(rows: list[dict], title: str = "") -> str:
    """Returns a table as text, with one line for each dict in `rows`. All dicts have the same keys, which are
    the headings of the columns.
    """
    heads = list(rows[0])
    cells = [heads] + [[str(row[head]) for head in heads] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                       for i, (cell, w) in enumerate(zip(line, widths)))
             for line in cells]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(([title] if title else []) + lines)


class Progress:
    """A progress line on stderr with the amount of work done, the rate and the remaining time. Only the first
    rank prints the line. On a terminal the line is replaced at most twice a second, and removed at the end of
    the work. Without a terminal, a new line is printed at most once in ten seconds. With `stays=True`, the
    first `__call__` always prints a line. Another line is printed at the end of the work, and is not removed.
    """

    def __init__(self, what: str, total: float, unit: str, done: float = 0, stays: bool = False):
        """`what` is the name of the work. `total` is the amount of all work, and `done` is the part of
        `total` that an earlier run finished. `unit` names the unit of the amounts, for example "steps".
        """
        self.what, self.total, self.unit, self.done, self.before = what, total, unit, done, done
        self.stays, self.silent, self.terminal = stays, not first_rank(), sys.stderr.isatty()
        self.begun = time.monotonic()
        # the time of the last line; with `stays` it is -inf, so that the first call prints a line
        self.shown = float("-inf") if stays else self.begun
        self.in_place = False  # whether the cursor is on the progress line

    def __call__(self, amount: float, detail: str = "") -> None:
        """Adds `amount` to the work done. If it is time for a new line (see `Progress`), prints a line with
        `detail` at its end.
        """
        self.done += amount
        finished = self.done >= self.total
        now, pause = time.monotonic(), 0.5 if self.terminal else 10
        if not self.silent and (self.stays if finished else now - self.shown >= pause):
            self.shown, self.in_place = now, self.terminal
            text = self.text(now) + (f"  {detail}" if detail else "")
            print(f"\r\033[K{text}" if self.terminal else text, end="" if self.terminal else "\n",
                  file=sys.stderr, flush=True)
        if finished:
            self.close()

    def text(self, now: float) -> str:
        """Returns the progress line at the time `now`."""
        rate = (self.done - self.before) / max(now - self.begun, 1e-3)
        left = clock(max(self.total - self.done, 0) / rate) if rate > 0 else "?"
        return (f"{self.what}  {short(self.done)} of {short(self.total)} {self.unit}  "
                f"{short(rate)} {self.unit}/s  {left} left")

    def close(self) -> None:
        """Removes the progress line from the terminal. With `stays`, moves the cursor below the line instead.
        """
        if self.in_place:
            print(end="\n" if self.stays else "\r\033[K", file=sys.stderr, flush=True)
        self.in_place = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def short(number: float) -> str:
    """Returns a number as short text, for example 1,234 or 12.3 or 0.012."""
    if number >= 100 or number == int(number):
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 1 else f"{number:.2g}"
