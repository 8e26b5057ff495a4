"""Contenders that take turns: each in a process of its own, so that each has its own peak of memory.

note: torch is imported only where it is used: it would count in what `bench.py data` measures.
"""

import contextlib
import multiprocessing
import re
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from minibert.common.errors import UserError


def serve(turn: Callable, pipe, device=None) -> None:
    """In a contender's process:
    takes a turn whenever asked and sends its seconds; at the end its peak of memory, bytes.

    A turn that measures its own parts returns what is to be sent instead. `device`: that of torch, where the
    turns run on one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        import torch
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent is gone
        while pipe.recv():
            begun = time.perf_counter()
            measured = turn()
            if on_gpu:
                torch.cuda.synchronize()
            pipe.send(time.perf_counter() - begun if measured is None else measured)
        pipe.send(torch.cuda.max_memory_allocated() if on_gpu else peak_memory())


def peak_memory() -> int:
    """The most memory this process has held, bytes."""
    try:  # Linux starts a new process' ru_maxrss at its parent's, but not this count
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(worker: Callable, *given) -> None:
    """A contender's process: `worker(*given)`, the last of which is its pipe; a `UserError` is sent, for the
    parent to raise.
    """
    try:
        worker(*given)
    except UserError as error:
        with contextlib.suppress(BrokenPipeError):  # the parent is gone
            given[-1].send(error)


@contextlib.contextmanager
def contender(worker: Callable, *given) -> Iterator[tuple[int, Callable]]:
    """`worker(*given, pipe)`, which is to `serve`, in a process of its own: the number of that process, and a
    function that has it take a turn and returns what it sends; of False, its last word. A `UserError` in
    there is raised here.
    """
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=run, args=(worker, *given, theirs))  # no daemon: it may have children
    process.start()
    theirs.close()

    def ask(turn: bool = True):
        try:
            with contextlib.suppress(ConnectionError):  # it has ended; what it sent is still there
                pipe.send(turn)
            answer = pipe.recv()
        except (EOFError, ConnectionError):
            raise UserError("a contender ended before its time; what it said is above") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    try:
        yield process.pid, ask
        with contextlib.suppress(ConnectionError):  # it has said its last word
            pipe.send(False)
        process.join()
    finally:
        process.terminate()
        process.join()
        pipe.close()


def told(what: str, turn: Callable):
    """What `turn()` returns, with a line on stderr of how long it took: a bench is not silent for minutes."""
    begun = time.perf_counter()
    found = turn()
    print(f"{what}: {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
    return found


def alternate(worker: Callable, kinds: list[str], options,
              turns: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Starts `worker(kind, options, pipe)` for each kind and lets them take turns, after one each to warm up.

    Returns the seconds of each kind's turns (or what they measured) and its peak of memory in bytes.
    """
    with contextlib.ExitStack() as stack:
        asks = {kind: stack.enter_context(contender(worker, kind, options))[1] for kind in kinds}
        measured: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(turns + 1):
            for kind, ask in asks.items():
                elapsed = told(f"turn {number} of {turns}, {kind}" if number else f"warm-up, {kind}", ask)
                if number:
                    measured[kind].append(elapsed)
        return measured, {kind: ask(False) for kind, ask in asks.items()}


def rate(count: float, seconds: list[float]) -> tuple[float, list[float]]:
    """`count` a second of each turn: the median, and lowest and highest."""
    return count / statistics.median(seconds), [count / max(seconds), count / min(seconds)]


def ratios(theirs: list[float], ours: list[float]) -> list[float]:
    """Theirs over ours turn by turn, sorted: of seconds, how many times as fast ours are."""
    return sorted(a / b for a, b in zip(theirs, ours))


def compared(seconds: dict[str, list[float]], memory: dict[str, int],
             peer: str = "transformers") -> dict[str, float]:
    """Prints and returns how much faster minibert is than the peer:
    the median of the turns' ratios; and its memory's share.
    """
    times = ratios(seconds[peer], seconds["minibert"])
    speed, share = statistics.median(times), memory["minibert"] / memory[peer]
    print(f"minibert is {speed:.2f} times as fast as {peer} "
          f"(turn by turn {times[0]:.2f} to {times[-1]:.2f}) with {100 * share:.0f} % of the memory")
    return {"speed_ratio": speed, "memory_ratio": share}
