"""Contenders that take turns: each in a process of its own, so that each has its own peak of memory."""

import re
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from minibert.errors import UserError


def serve(turn: Callable, pipe, device: torch.device) -> None:
    """In a contender's process:
    takes a turn whenever asked and sends its seconds; at the end its peak of memory, bytes.

    A turn that measures its own parts returns what is to be sent instead.
    """
    while pipe.recv():
        begun = time.perf_counter()
        measured = turn()
        if device.type == "cuda":
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - begun if measured is None else measured)
    pipe.send(torch.cuda.max_memory_allocated() if device.type == "cuda"
              else peak_memory())


def peak_memory() -> int:
    """The most memory this process has held, bytes."""
    try:  # Linux starts a new process' ru_maxrss at its parent's, but not this count
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def alternate(worker: Callable, kinds: list[str], options,
              turns: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Starts `worker(kind, options, pipe)` for each kind and lets them take turns, after one each to warm up.

    Returns the seconds of each kind's turns (or what they measured) and its peak of memory in bytes.
    """
    context = torch.multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for kind in kinds:
        pipes[kind], theirs = context.Pipe()
        processes.append(context.Process(target=worker, args=(kind, options, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    memory = {}
    try:
        for number in range(turns + 1):
            for kind in kinds:
                pipes[kind].send(True)
                elapsed = pipes[kind].recv()
                if number:
                    seconds[kind].append(elapsed)
        for kind in kinds:
            pipes[kind].send(False)
            memory[kind] = pipes[kind].recv()
    except (EOFError, ConnectionError):
        raise UserError("a contender ended before its time; what it said is above") from None
    return seconds, memory


def compared(seconds: dict[str, list[float]], memory: dict[str, int]) -> dict[str, float]:
    """Prints and returns how much faster minibert is than transformers:
    the median of the turns' ratios; and its memory's share.
    """
    ratios = sorted(theirs / ours for ours, theirs in zip(seconds["minibert"], seconds["transformers"]))
    speed, share = statistics.median(ratios), memory["minibert"] / memory["transformers"]
    print(f"minibert is {speed:.2f} times as fast (turn by turn {ratios[0]:.2f} to {ratios[-1]:.2f}) "
          f"with {100 * share:.0f} % of the memory")
    return {"speed_ratio": speed, "memory_ratio": share}
