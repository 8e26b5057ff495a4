"""The line that tells how far long work is. Without torch, so that downloads and preparation show it, too."""

import os
import sys
import time
from collections.abc import Callable

from minibert.common.tables import clock


class Line:
    """One line about long work: in place twice a second on a terminal, elsewhere a new one every ten seconds.

    It goes to stderr, of several ranks only the first one's. `at_once` shows the first text that there is,
    else what takes less than that time shows nothing.
    """

    def __init__(self, at_once: bool = False):
        self.terminal, self.open = sys.stderr.isatty(), False  # open: a text in place, not yet left behind
        self.silent = os.environ.get("RANK", "0") != "0"
        self.begun = time.monotonic()
        self.last = float("-inf") if at_once else self.begun

    def due(self) -> bool:
        """Whether it is time to show something again."""
        return not self.silent and time.monotonic() - self.last >= (0.5 if self.terminal else 10)

    def seconds(self) -> float:
        """The time since the line was made, which is when the work began; never 0."""
        return max(time.monotonic() - self.begun, 1e-3)

    def left(self, share: float) -> str:
        """The time left, at the rate so far, where this share of the work is done."""
        return clock(self.seconds() * max(1 / share - 1, 0))

    def show(self, text: str) -> None:
        """Shows the text in place of the one before, or as the next line."""
        if self.silent:
            return
        self.last, self.open = time.monotonic(), self.terminal
        print(f"\r\033[K{text}" if self.terminal else text, end="" if self.terminal else "\n",
              file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leaves the text where it is; what is printed next begins below."""
        self._close("\n")

    def clear(self) -> None:
        """Takes away the text that is in place."""
        self._close("\r\033[K")

    def _close(self, end: str) -> None:
        if self.open:
            print(end=end, file=sys.stderr, flush=True)
        self.open = False


def counting(what: str, total: int) -> Callable[[int], None]:
    """A function to tell of every so many of `total` tokens done: it shows share, rate and time left."""
    line, done = Line(), 0

    def tell(tokens: int) -> None:
        nonlocal done
        done += tokens
        if done >= total:
            line.clear()
        elif line.due():
            share = done / total
            line.show(f"{what}: {share:.0%}  {done / line.seconds():,.0f} tok/s  {line.left(share)} left")

    return tell
