"""Measures the times of several programs alternately. A turn is one measurement of one program. Each program
runs in its own process, so that its peak memory can be measured.
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

import torch

from minibert.common.errors import UserError


def serve(turn: Callable, pipe, device: torch.device) -> None:
    """Runs the main loop of a measured process. For each request of the parent process, calls `turn` and
    sends the result to the parent. If the result is None, sends the duration of the call in seconds instead.
    At the end, sends the peak memory in bytes (on a GPU, the peak of torch's GPU memory).
    """
    # This process ignores Ctrl-C, because the parent process also gets Ctrl-C and then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    on_gpu = device.type == "cuda"
    # if the parent process has ended, the pipe raises these errors, and this process ends without a message
    with contextlib.suppress(EOFError, BrokenPipeError):
        while pipe.recv():
            begun = time.perf_counter()
            measured = turn()
            if on_gpu:
                torch.cuda.synchronize()
            pipe.send(time.perf_counter() - begun if measured is None else measured)
        pipe.send(torch.cuda.max_memory_allocated() if on_gpu else peak_memory())


def peak_memory() -> int:
    """Returns the peak memory of this process in bytes."""
    try:  # on Linux, VmHWM is read, because ru_maxrss can be the memory of the parent process
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(worker: Callable, *given) -> None:
    """Calls `worker(*given)` in a measured process. If the worker raises a `UserError`, sends the error
    through the pipe, which is the last value of `given`.
    """
    try:
        worker(*given)
    except UserError as error:
        with contextlib.suppress(BrokenPipeError):
            given[-1].send(error)


@contextlib.contextmanager
def contender(worker: Callable, *given) -> Iterator[Callable]:
    """Starts a process that calls `worker(*given, pipe)`. The worker must call `serve`. Yields a function
    `ask`. `ask()` runs one measurement and returns its result. `ask(False)` stops the worker and returns its
    peak memory in bytes. If the worker raises a `UserError`, `ask` raises it.
    """
    context = multiprocessing.get_context("spawn")
    pipe, worker_end = context.Pipe()
    # not a daemon process, because some workers start child processes, and a daemon process cannot do this
    process = context.Process(target=run, args=(worker, *given, worker_end))
    process.start()
    worker_end.close()

    def ask(turn: bool = True):
        try:
            # `send` fails if the worker has ended, but the worker's last message can still be read
            with contextlib.suppress(ConnectionError):
                pipe.send(turn)
            answer = pipe.recv()
        except (EOFError, ConnectionError):
            raise UserError("a measured process ended early; its error message is above") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    try:
        yield ask
    finally:
        process.terminate()
        process.join()
        pipe.close()


def alternate(worker: Callable, kinds: list[str], options,
              turns: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Starts a process with `worker(kind, options, pipe)` for each of `kinds`. In each round, every process
    runs one measurement. A warm-up round comes first, then `turns` rounds. Returns two dicts with the kinds
    as keys. The values of the first dict are the lists of results (usually seconds), without the warm-up. The
    values of the second dict are the peak memories in bytes.
    """
    with contextlib.ExitStack() as stack:
        asks = {kind: stack.enter_context(contender(worker, kind, options)) for kind in kinds}
        measured: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(turns + 1):
            for kind, ask in asks.items():
                begun = time.perf_counter()
                result = ask()
                name = f"turn {number} of {turns}" if number else "warm-up"
                print(f"{name}, {kind}: {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
                if number:
                    measured[kind].append(result)
        return measured, {kind: ask(False) for kind, ask in asks.items()}


def rate(count: float, seconds: list[float]) -> tuple[float, list[float]]:
    """Returns a tuple (median, [lowest, highest]) of rates. A rate is `count` divided by a number of seconds:
    by the median, the largest and the smallest of `seconds`.
    """
    return count / statistics.median(seconds), [count / max(seconds), count / min(seconds)]


def speeds(amount: float, unit: str, form: str, seconds: dict[str, list[float]],
           memory: dict[str, int]) -> tuple[dict[str, dict], dict[str, dict]]:
    """Returns two dicts with the programs as keys. The values are the speed and the peak memory: in the first
    dict as numbers for the JSON output, in the second dict as a row of the table. A program processes
    `amount` units in each measurement. `form` is the format of a speed in the table.
    """
    figures, rows = {}, {}
    for kind, taken in seconds.items():
        median, lowest_highest = rate(amount, taken)
        figures[kind] = {"per_second": median, "spread": lowest_highest, "peak_memory_bytes": memory[kind]}
        rows[kind] = {"program": kind, f"{unit}/s": format(median, form),
                      "from - to": " - ".join(format(value, form) for value in lowest_highest),
                      "peak memory": f"{memory[kind] / 2**30:.2f} GiB"}
    return figures, rows


def ratios(peer: list[float], own: list[float]) -> list[float]:
    """Returns the sorted ratios `peer[i]` / `own[i]` of two lists of times."""
    return sorted(a / b for a, b in zip(peer, own))


def compared(seconds: dict[str, list[float]], memory: dict[str, int],
             peer: str = "transformers") -> dict[str, float]:
    """Prints two ratios and returns them as a dict. "speed_ratio" is the time of `peer` divided by the time
    of minibert (median over the rounds). "memory_ratio" is the peak memory of minibert divided by the peak
    memory of `peer`.
    """
    times = ratios(seconds[peer], seconds["minibert"])
    speed, share = statistics.median(times), memory["minibert"] / memory[peer]
    print(f"minibert is {speed:.2f} times as fast as {peer} "
          f"({times[0]:.2f} to {times[-1]:.2f} in the single rounds) with {100 * share:.0f} % of the memory")
    return {"speed_ratio": speed, "memory_ratio": share}
