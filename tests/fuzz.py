"""Broken and hostile files for every reader: each gives a result, or one clear sentence.

    python tests/fuzz.py                              every reader, 1,000 inputs each
    python tests/fuzz.py safetensors config --inputs 20000 --seed 3
    python tests/fuzz.py config --only 712 --seed 3   one input again, with its traceback; its files are kept

A reader starts from a folder of good files. An input is that folder with one or two files changed by
mutate.py. It counts as read, as refused (`UserError`), or as a failure. A failure is any other exception, a
message of several lines, more than `SECONDS`, more than `MEMORY` of additional memory, a file opened for
writing outside the folder, or a process or connection that was started. Each reader runs in its own process;
if that ends early, it is a failure, too.
"""

import argparse
import collections
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from fuzz_readers import READERS, Reader

from minibert.common.errors import UserError, sentence

SECONDS, MEMORY = 10, 1 << 30


class TooSlow(BaseException):
    """An input took more than SECONDS."""


class Watch:
    """Records what an input must not do: write outside its folder, start a process, open a connection."""

    def __init__(self):
        self.folder, self.seen = None, []
        self.added = False

    def begin(self, folder: Path) -> None:
        """Starts recording for this folder. The hook stays; without a folder it does nothing."""
        if not self.added:
            sys.addaudithook(self)
        self.folder, self.seen, self.added = os.path.realpath(folder), [], True

    def __call__(self, event: str, args: tuple) -> None:
        if self.folder is None:
            return
        if event in ("os.system", "subprocess.Popen", "os.exec", "os.fork", "os.posix_spawn",
                     "socket.connect", "compile", "exec") and not (
                         str(args[0]).startswith("<code object <module>")):  # an import
            self.seen.append(f"{event} {args}")
        if event == "open":
            paths = args[:1] if args[2] and args[2] & (os.O_WRONLY | os.O_RDWR) else ()
        elif event in ("os.remove", "os.mkdir", "os.rmdir"):
            paths = args[:1] if args[-1] == -1 else ()  # else relative to an open folder
        else:
            paths = {"os.rename": args[:2], "os.link": args[:2], "os.symlink": args[1:2],
                     "shutil.rmtree": args[:1]}.get(event, ())
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)):
                folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
                # only opening follows a link; the others change the entry itself
                real = os.path.realpath(path) if event == "open" else f"{os.path.realpath(folder)}/{name}"
                real = os.fsdecode(real)
                if not f"{real}/".startswith(f"{self.folder}/") and real != os.devnull:
                    self.seen.append(f"{event} {path!r}")


WATCH = Watch()


def files_of(reader: Reader, folder: Path) -> list[tuple[Path, Callable]]:
    """The files to change, each with its mutator, in a fixed order."""
    return [(path, mutate) for path in sorted(folder.rglob("*")) if path.is_file()
            for mutate in [next((m for pattern, m in reader.mutators.items() if path.match(pattern)), None)]
            if mutate]


def outcome(reader: Reader, folder: Path, draw: random.Random, watch: Watch | None = None) -> str:
    """"read", "refused: ..." or "FAILED: ..."."""
    def too_slow(*_):
        raise TooSlow
    before = signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    if watch:
        watch.begin(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder, draw)
        result = "read"
    except UserError as error:
        said = sentence(error)
        fine = said.isprintable() and len(said) < 3000
        result = f"refused: {said}" if fine else f"FAILED: message {said[:200]!r}"
    except TooSlow:
        result = f"FAILED: more than {SECONDS} seconds"
    except BaseException as error:  # a panic of Rust is no Exception
        where = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in where if "minibert/" in frame.filename] or where
        result = (f"FAILED: {type(error).__name__} {str(error)[:150]!r} in {Path(ours[-1].filename).name}:"
                  f"{ours[-1].lineno} {ours[-1].name}")
        if "--only" in sys.argv:
            traceback.print_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if watch:
            watch.folder = None
    if watch and watch.seen:
        result = f"FAILED: it did {watch.seen[0]}"
    return result


def inputs(name: str, folder: Path, seed: int, numbers, watch: Watch | None = None):
    """(number, outcome) of the inputs of one reader; the files are put back after each."""
    reader = READERS[name]
    folder.mkdir(exist_ok=True)
    reader.make(folder)
    files = files_of(reader, folder)
    good = {path: path.read_bytes() for path, _ in files}
    assert outcome(reader, folder, random.Random(0)) == "read", outcome(reader, folder, random.Random(0))
    for number in numbers:
        for path, data in good.items():
            if not path.exists() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        draw = random.Random(f"{name} {seed} {number}")
        for path, mutate in draw.sample(files, min(len(files), draw.choice((1, 1, 1, 2)))):
            path.write_bytes(mutate(draw, good[path]))
            if draw.random() < 0.01:  # a link to what never ends, to nowhere, to itself, to a folder
                path.unlink()
                path.symlink_to(draw.choice(("/dev/zero", "nowhere", path.name, "/", "/etc/passwd")))
        yield number, outcome(reader, folder, draw, watch)
        for path, _ in files:
            if path.is_symlink():
                path.unlink()


def memory_limit(extra: int) -> None:
    """From now on this process may have `extra` bytes of address space more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra,) * 2)


def child(name: str, folder: Path, seed: int, numbers) -> None:
    """Prints one line for each input: before it its number, after it the outcome."""
    tempfile.tempdir = str(folder / "files")  # an unnamed file there counts as inside
    (folder / "files").mkdir()
    torch.set_num_threads(1)
    for _ in inputs(name, folder / "warm", seed, [-1]):
        memory_limit(MEMORY)
    for number, result in inputs(name, folder / "files", seed, numbers, WATCH):
        print(json.dumps([number, result]), flush=True)


def run(name: str, seed: int, count: int) -> collections.Counter:
    """Counts the outcomes of `count` inputs; a child that dies is a failure, and another goes on after it."""
    counts, failures, start, shown = collections.Counter(), collections.Counter(), 0, {}
    while start < count:
        begun = start
        in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=in_memory))
        command = [sys.executable, __file__, name, "--child", str(folder), "--seed", str(seed),
                   "--start", str(start), "--inputs", str(count)]
        # stderr to a file: nobody reads it meanwhile, and a full pipe would stop the child for ever
        with (tempfile.TemporaryFile("w+") as stderr,
              subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process):
            for line in process.stdout:
                number, result = json.loads(line)
                start = number + 1
                kind = result.partition(":")[0]
                counts[kind] += 1
                if kind == "FAILED":
                    what = re.sub(r"\d+", "0", result)
                    failures[what] += 1
                    shown.setdefault(what, (number, result))
            process.wait()
            stderr.seek(0)
            said = stderr.read()
        shutil.rmtree(folder, ignore_errors=True)
        if process.returncode == 0:
            break
        if start == begun and "Traceback" in said:
            raise SystemExit(f"the fuzzer itself fails:\n{said}")
        counts["FAILED"] += 1
        failures[f"FAILED: the process ended with {process.returncode}"] += 1
        shown.setdefault(f"FAILED: the process ended with {process.returncode}", (start, said[-800:]))
        start += 1
    for what, times in failures.most_common():
        number, result = shown[what]
        print(f"  {times} x, first input {number}: {result}", flush=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER",
                        help=f"of {', '.join(READERS)} (default: all)")
    parser.add_argument("--inputs", type=int, default=1000, metavar="N",
                        help="for each reader (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--only", type=int, metavar="I", help="input I of one reader again, its files kept")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.readers or list(READERS)
    if args.child:
        child(names[0], Path(args.child), args.seed, range(args.start, args.inputs))
        return 0
    if args.only is not None:
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{names[0]}-"))
        for number, result in inputs(names[0], folder, args.seed, [args.only]):
            print(f"input {number}: {result}\nfiles: {folder}")
        return 0
    print(f"{'reader':12} {'inputs':>8} {'read':>8} {'refused':>8} {'failed':>7}  seconds")
    total = collections.Counter()
    for name in names:
        begun = time.monotonic()
        counts = run(name, args.seed, args.inputs)
        total += counts
        print(f"{name:12} {counts.total():8,} {counts['read']:8,} {counts['refused']:8,} "
              f"{counts['FAILED']:7,}  {time.monotonic() - begun:7.1f}", flush=True)
    print(f"{'all':12} {total.total():8,} {total['read']:8,} {total['refused']:8,} {total['FAILED']:7,}")
    return 1 if total["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
