"""Times `prepare`, the function behind data/prepare.py, and `tokenizers` alone, on the same lines of text.

The two programs take turns. They read the same plain text file, which is made from the given texts, and they
have the same tokenizer and the same number of threads. `prepare` reads, splits, hashes, tokenises, writes and
flushes to the disk. `tokenizers` only tokenises, and only this is timed. Each program has its own process, so
each has its own peak of memory.

note: torch is imported after the measurement, because the measured processes import this file, too, and must
not hold torch in their memory.
"""

import contextlib
import dataclasses
import itertools
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minibert.bench.turns import contender, rate, ratios, serve, told
from minibert.common.console import table
from minibert.common.errors import UserError
from minibert.common.options import at_least_one, numbers, option
from minibert.common.randomness import samples_of_step
from minibert.data.corpus import open_corpus, read_description
from minibert.data.prepare import prepare
from minibert.data.python_docs import python_docs, split_docs
from minibert.data.text import find_sources, read_documents
from minibert.data.tokenizer import Tokenizer, load_tokenizer

BUNDLED = Path(__file__).resolve().parents[2] / "weights" / "teacher"
LINES = 1000  # lines of one batch for `tokenizers`, the default of `datasets.map`; other sizes are not faster
SAMPLING = 0.01  # seconds between two readings of the memory
STEPS, BATCH = 1000, 32  # number of steps and sequences a step when the corpus is read


@dataclass(frozen=True)
class DataBench:
    """Every option of bench.py data."""

    files: tuple[str, ...] = option((), "text files or folders; words right after `data` are text files "
                                         "or folders, too (default: Python's documentation)")
    tokenizer: str | None = option(None, "folder with tokenizer.json or vocab.txt (default: that of the "
                                          "bundled teacher)")
    threads: int | None = option(None, "number of threads that tokenise (default: one for each core)")
    megabytes: float = option(16.0, "size of the text of one turn, in 10^6 bytes; the texts are repeated "
                                     "or cut to this size")
    rounds: int = option(5, "number of measured turns of each program, after one warm-up turn")
    growth: str | None = option(None, "measure the peak memory of `prepare` and of reading the corpus, "
                                       "not speeds, for these sizes of text in MB, for example 10,100,1000")

    def __post_init__(self):
        at_least_one(self, "rounds", "threads")
        for size in self.sizes():
            if not 0 < size < float("inf"):
                raise UserError(f"a size of text is above 0 MB, not {size}")

    def sizes(self) -> list[float]:
        """The sizes of the measured texts, in MB."""
        return [self.megabytes] if self.growth is None else numbers("--growth", self.growth, float)


def write_plain_text(files: tuple[str, ...], target: Path) -> None:
    """Writes the documents that `prepare` finds in `files` as plain text, with a blank line before each.

    If `files` is empty, it writes the documents of Python's documentation.
    """
    with open(target, "w", encoding="utf-8", newline="\n") as file:
        found = (itertools.chain.from_iterable(read_documents(source.path) for source in find_sources(files))
                 if files else (document for _, document in split_docs(python_docs())))
        for document in found:
            file.write("\n" + "\n".join(document) + "\n")


def repeat(source: Path, target: Path, size: float) -> None:
    """Writes the lines of `source` to `target`, again and again, until `target` has about `size` bytes."""
    written = 0
    try:
        with open(source, "rb") as texts, open(target, "wb") as file:
            if not any(map(bytes.strip, texts)):
                raise UserError("there is no text in the files given")
            while written < size:
                texts.seek(0)
                for line in texts:
                    written += file.write(line)
                    if written >= size:
                        break
    except OSError as error:
        raise UserError(f"{size / 1e6:,.0f} MB of text cannot be written to {target.parent}: "
                        f"{error.strerror}; name another folder in TMPDIR") from None


def prepared_folder(text: Path) -> Path:
    """The folder in which `prepare` writes the tokens of `text`."""
    return text.with_suffix(".prepared")


def prepare_turn(text: Path, tokenizer: Tokenizer) -> tuple[float, int]:
    """Runs `prepare` as data/prepare.py does. Returns seconds and tokens.

    The time includes flushing the files to the disk.
    """
    out = prepared_folder(text)
    shutil.rmtree(out, ignore_errors=True)  # the folder of the last turn
    begun = time.perf_counter()
    prepare([text], tokenizer, out, wikitext="no", report=None)
    seconds = time.perf_counter() - begun
    return seconds, sum(part["tokens"] for part in read_description(out)["parts"].values())


def tokenizers_turn(text: Path, tokenizer: Tokenizer) -> tuple[float, int]:
    """Tokenises the text with `tokenizers` alone. Returns seconds and tokens. Reading the lines is not timed.

    note: this function calls `encode_batch_fast`, which computes no offsets of tokens. `encode_batch` is
    slower, because it computes offsets, which are not needed here.
    """
    seconds, tokens = 0.0, 0
    with open(text, encoding="utf-8", newline="\n") as file:
        lines = (line.rstrip("\n") for line in file if line != "\n")
        while batch := list(itertools.islice(lines, LINES)):
            begun = time.perf_counter()
            tokens += sum(map(len, tokenizer.backend.encode_batch_fast(batch, add_special_tokens=False)))
            seconds += time.perf_counter() - begun
    return seconds, tokens


def reading_turn(text: Path, tokenizer: Tokenizer) -> tuple[float, int]:
    """Reads the prepared text as a training does. Returns seconds and tokens.

    It opens the corpus and reads the sequences of `STEPS` steps, from the training part and the held-out
    part.
    """
    begun = time.perf_counter()
    corpus = open_corpus(prepared_folder(text), tokenizer=tokenizer, parts=("train", "held-out"),
                         min_length=3)
    tokens = 0
    for step in range(STEPS):
        for i in samples_of_step(step, BATCH, len(corpus), seed=0):
            tokens += corpus.tokens(i).copy().size
    return time.perf_counter() - begun, tokens


COMPARED = {"minibert": prepare_turn, "tokenizers": tokenizers_turn}
TURNS = COMPARED | {"reading": reading_turn}


def data_worker(kind: str, text: Path, tokenizer: str, threads: int, pipe) -> None:
    """Runs the turns of one program in its own process. A turn returns seconds and tokens."""
    # `tokenizers` reads these variables at its first call
    os.environ.update(TOKENIZERS_PARALLELISM="true", RAYON_NUM_THREADS=str(threads))
    loaded = load_tokenizer(tokenizer)
    serve(lambda: TURNS[kind](text, loaded), pipe)


def anonymous_memory(pid: int) -> int | None:
    """Bytes of anonymous memory of a process and its child processes. Returns None if there is no /proc.

    A page that a forked process shares with its parent is counted twice, so the sum may be too large.
    """
    total, pids = None, [pid]
    for one in pids:
        try:
            with open(f"/proc/{one}/status") as status:
                kibibytes = next((line.split()[1] for line in status if line.startswith("RssAnon:")), 0)
            total = (total or 0) + 1024 * int(kibibytes)
            for thread in os.listdir(f"/proc/{one}/task"):
                pids += map(int, Path(f"/proc/{one}/task/{thread}/children").read_text().split())
        except OSError:
            continue  # the process has ended in the meantime
    return total


def peak_during(pid: int, turn: Callable) -> tuple[int | None, float, int]:
    """Runs one turn of a program. Returns the peak of its anonymous memory, the seconds and the tokens.

    The memory is read every `SAMPLING` seconds, so a shorter peak may be missed.
    """
    peak, over = anonymous_memory(pid), threading.Event()

    def watch() -> None:
        nonlocal peak
        while peak is not None and not over.wait(SAMPLING):
            peak = max(peak, anonymous_memory(pid) or 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seconds, tokens = turn()
    finally:
        over.set()
        watcher.join()
    return peak, seconds, tokens


def mebibytes(size: int | None) -> str:
    """A number of bytes as text in MiB. An unknown number (None) is "-"."""
    return "-" if size is None else f"{size / 2**20:.0f} MiB"


def compare_speeds(text: Path, tokenizer: str, threads: int, rounds: int) -> tuple[list[dict], dict]:
    """Runs `prepare` and `tokenizers` in turns. Returns rows for the table and figures for the JSON line."""
    size = text.stat().st_size
    seconds, memory, counts = {kind: [] for kind in COMPARED}, {}, {}
    with contextlib.ExitStack() as stack:
        all_of_them = {kind: stack.enter_context(contender(data_worker, kind, text, tokenizer, threads))
                       for kind in COMPARED}
        # memory is read in the warm-up only, so that reading it does not change the measured times
        for kind, (pid, turn) in all_of_them.items():
            memory[kind], _, counts[kind] = told(f"warm-up, {kind}", lambda: peak_during(pid, turn))
        if len(set(counts.values())) > 1:
            raise UserError(f"`prepare` and `tokenizers` did not find the same tokens ({counts}), so their "
                            "speeds cannot be compared; this is a mistake of minibert, please report it "
                            "with the text")
        for number in range(rounds):
            for kind, (_, turn) in all_of_them.items():
                seconds[kind].append(told(f"round {number + 1} of {rounds}, {kind}", turn)[0])
    times = ratios(seconds["tokenizers"], seconds["minibert"])
    figures, rows = {}, []
    for kind in COMPARED:
        middle, spread = rate(size / 1e6, seconds[kind])
        figures[kind] = {"megabytes_per_second": middle, "spread": spread,
                         "peak_anonymous_bytes": memory[kind]}
        rows.append({"tokenising": kind, "MB/s": f"{middle:.2f}",
                     "from - to": "{:.2f} - {:.2f}".format(*spread), "tokens": f"{counts[kind]:,}",
                     "peak anonymous memory": mebibytes(memory[kind])})
    figures |= {"text_bytes": size, "tokens": counts["minibert"], "speed_ratio": statistics.median(times),
                "speed_ratio_spread": [times[0], times[-1]]}
    return rows, figures


def grow(base: Path, sizes: list[float], tokenizer: str, threads: int) -> tuple[list[dict], dict]:
    """Measures the memory of `prepare` and of reading the corpus for texts of growing size.

    Each measurement has a new process. Returns rows for the table and figures for the JSON line.
    """
    rows, figures, text = [], [], base.with_name("grown.txt")
    for megabytes in sizes:
        repeat(base, text, megabytes * 1e6)
        size = text.stat().st_size
        with contender(data_worker, "minibert", text, tokenizer, threads) as (pid, turn):
            peak, seconds, tokens = told(f"{size / 1e6:,.0f} MB", lambda: peak_during(pid, turn))
        with contender(data_worker, "reading", text, tokenizer, threads) as (pid, turn):
            reading = peak_during(pid, turn)[0]
        figures.append({"text_bytes": size, "tokens": tokens, "seconds": seconds,
                        "peak_anonymous_bytes": peak, "reading_peak_anonymous_bytes": reading})
        rows.append({"text": f"{size / 1e6:,.0f} MB", "tokens": f"{tokens:,}",
                     "peak anonymous memory": mebibytes(peak), "reading it": mebibytes(reading),
                     "MB/s": f"{size / 1e6 / seconds:.2f}"})
    return rows, {"growth": figures}


def bench_data(options: DataBench) -> dict:
    """Measures and prints. Returns the content of the JSON line as a dict."""
    threads, tokenizer = options.threads or os.cpu_count() or 1, options.tokenizer or str(BUNDLED)
    # an error in the folder is reported here, and not in a child process
    vocabulary = load_tokenizer(tokenizer).vocab_size
    with tempfile.TemporaryDirectory() as folder:
        base, text = Path(folder) / "base.txt", Path(folder) / "text.txt"
        write_plain_text(options.files, base)
        if options.growth is None:
            repeat(base, text, options.megabytes * 1e6)
            rows, figures = compare_speeds(text, tokenizer, threads, options.rounds)
            low, high = figures["speed_ratio_spread"]
            what = "speed of prepare beside bare tokenizers"
            verdict = (f"prepare reaches {100 * figures['speed_ratio']:.0f} % of the bare speed, turn by "
                       f"turn {100 * low:.0f} to {100 * high:.0f} %; both found the same number of tokens")
        else:
            rows, figures = grow(base, options.sizes(), tokenizer, threads)
            what, verdict = "memory of prepare by size of text", ""
            first, last = figures["growth"][0], figures["growth"][-1]
            if len(rows) > 1 and first["peak_anonymous_bytes"] and last["peak_anonymous_bytes"]:
                figures["memory_ratio"] = last["peak_anonymous_bytes"] / first["peak_anonymous_bytes"]
                verdict = (f"{last['text_bytes'] / first['text_bytes']:.1f} times the text takes "
                           f"{figures['memory_ratio']:.2f} times the memory")
    from minibert.common.runtime import describe, start  # imports torch: see the note at the top
    print(table(rows, f"{what}; {threads} thread{'s' * (threads > 1)}, {vocabulary:,} pieces"))
    if verdict:
        print(verdict)
    machine = describe(start("cpu", "fp32", training=False))
    machine = {name: machine[name] for name in ("device", "python", "numpy", "tokenizers", "minibert")}
    return {"bench": "data", "options": dataclasses.asdict(options) | {"threads": threads},
            "vocab_size": vocabulary, "machine": machine | {"cores": os.cpu_count()}, **figures}
