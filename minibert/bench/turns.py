"""Times programs in turns. Each program has its own process, so each has its own peak of memory.

note: torch is imported inside functions, because `bench.py data` measures the memory of processes without it.
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
    """Runs in the process of a program: runs one turn whenever the parent asks, and sends its time in
    seconds.

    At the end it sends the peak of memory in bytes. A turn that returns a value sends this value instead of
    its time. `device` is torch's device if the turns use one.
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
    """The peak memory of this process in bytes."""
    try:  # Linux starts a new process' ru_maxrss at its parent's, but not this count
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(worker: Callable, *given) -> None:
    """Runs `worker(*given)` in its process. Sends a `UserError` to the parent, which raises it.

    The last value of `given` is the pipe.
    """
    try:
        worker(*given)
    except UserError as error:
        with contextlib.suppress(BrokenPipeError):  # the parent is gone
            given[-1].send(error)


@contextlib.contextmanager
def contender(worker: Callable, *given) -> Iterator[tuple[int, Callable]]:
    """Starts `worker(*given, pipe)`, which calls `serve`, in its own process.

    Yields its process id and a function `ask(turn)`: `ask()` runs one turn and returns its time in seconds,
    `ask(False)` stops the worker and returns its peak memory. A `UserError` of the worker is raised here.
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
            raise UserError("a measured process ended early; its error is above") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    try:
        yield process.pid, ask
        with contextlib.suppress(ConnectionError):  # the process has ended
            pipe.send(False)
        process.join()
    finally:
        process.terminate()
        process.join()
        pipe.close()


def told(what: str, turn: Callable):
    """Returns the result of `turn()`. Prints its time on stderr, so that a long benchmark shows progress."""
    begun = time.perf_counter()
    found = turn()
    print(f"{what}: {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
    return found


def alternate(worker: Callable, kinds: list[str], options,
              turns: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Starts `worker(kind, options, pipe)` for each kind and runs their turns alternately, after one warm-up
    each.

    Returns the seconds (or the measured values) of each kind's turns, and its peak of memory in bytes.
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
    """`count` divided by the seconds of each turn: the median, and the lowest and highest."""
    return count / statistics.median(seconds), [count / max(seconds), count / min(seconds)]


def ratios(theirs: list[float], ours: list[float]) -> list[float]:
    """`theirs` divided by `ours`, turn by turn, sorted. For times this is how many times as fast ours is."""
    return sorted(a / b for a, b in zip(theirs, ours))


def compared(seconds: dict[str, list[float]], memory: dict[str, int],
             peer: str = "transformers") -> dict[str, float]:
    """Prints and returns how many times as fast as the peer minibert is, and its share of the peer's memory.

    The speed is the median of the ratios of the turns.
    """
    times = ratios(seconds[peer], seconds["minibert"])
    speed, share = statistics.median(times), memory["minibert"] / memory[peer]
    print(f"minibert is {speed:.2f} times as fast as {peer} "
          f"(turn by turn {times[0]:.2f} to {times[-1]:.2f}) with {100 * share:.0f} % of the memory")
    return {"speed_ratio": speed, "memory_ratio": share}
