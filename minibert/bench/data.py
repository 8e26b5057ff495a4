"""Times `prepare`, which data/prepare.py calls, and the library `tokenizers` alone, on the same text.

The two programs take turns. They read the same plain text file, which is made from the given texts, and they
have the same tokenizer and the same number of threads. `prepare` reads, splits, hashes, tokenises, writes and
flushes to the disk, and all of this is timed. For `tokenizers`, only the tokenising is timed. Each program
has its own process, so the peak memory of each program is known.

note: torch is imported after the measurement. The measured processes also import this file, and torch would
add to their memory.
"""

import dataclasses
import itertools
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from minibert.bench.turns import alternate, compared, serve, speeds
from minibert.common.console import table
from minibert.common.disk import disk_errors
from minibert.common.errors import UserError
from minibert.common.options import at_least_one, option, within
from minibert.data.corpus import read_description
from minibert.data.prepare import prepare
from minibert.data.python_docs import python_docs, split_docs
from minibert.data.text import find_sources, read_documents
from minibert.data.tokenizer import Tokenizer, load_tokenizer

BUNDLED = Path(__file__).resolve().parents[2] / "weights" / "teacher"
LINES = 1000  # lines in each call of `tokenizers`, as in `datasets.map`; other numbers are not faster


@dataclass(frozen=True)
class DataBench:
    """Every option of bench.py data."""

    files: tuple[str, ...] = option((), "text files or folders; the name --files may be left out: bench.py "
                                         "data FILE ... (default: Python's documentation)")
    tokenizer: str = option(str(BUNDLED), "folder with tokenizer.json or vocab.txt")
    threads: int = option(os.cpu_count() or 1, "number of threads for tokenising")
    megabytes: float = option(16.0, "size of the text of one turn, in 10^6 bytes; the text is repeated or "
                                     "cut to this size")
    rounds: int = option(5, "number of measured turns of each program, after one warm-up turn")

    def __post_init__(self):
        at_least_one(self, "rounds", "threads")
        within(self, 0, float("inf"), "megabytes", open_low=True)


def write_plain_text(files: tuple[str, ...], target: Path) -> None:
    """Writes the documents that `prepare` finds in `files` to `target`, with a blank line before each.

    If `files` is empty, the documents of Python's documentation are written.
    """
    with open(target, "w", encoding="utf-8", newline="\n") as file:
        found = ((document for source in find_sources(files) for document, _ in read_documents(source.path))
                 if files else (document for _, document in split_docs(python_docs())))
        for document in found:
            file.write("\n" + "\n".join(document) + "\n")


def repeat(source: Path, target: Path, size: float) -> None:
    """Writes the lines of `source` to `target`, repeatedly, until `target` has about `size` bytes."""
    written = 0
    with disk_errors(target), open(source, "rb") as texts, open(target, "wb") as file:
        if not any(map(bytes.strip, texts)):
            raise UserError("the given files have no text")
        while written < size:
            texts.seek(0)
            for line in texts:
                written += file.write(line)
                if written >= size:
                    break


def prepare_turn(text: Path, tokenizer: Tokenizer) -> tuple[float, int]:
    """Runs `prepare` as data/prepare.py does. Returns the seconds, and the number of tokens.

    The seconds include the time in which the files are flushed to the disk.
    """
    out = text.with_suffix(".prepared")
    shutil.rmtree(out, ignore_errors=True)  # removes the folder that the last turn made
    begun = time.perf_counter()
    prepare([text], tokenizer, out, wikitext="no", report=None)
    seconds = time.perf_counter() - begun
    return seconds, sum(part["tokens"] for part in read_description(out)["parts"].values())


def tokenizers_turn(text: Path, tokenizer: Tokenizer) -> tuple[float, int]:
    """Tokenises the text with `tokenizers` alone. Returns the seconds, and the number of tokens. The time in
    which lines are read does not count.

    note: this function calls `encode_batch_fast`. `encode_batch` is slower, because it also computes the
    offsets of the tokens in the text, which are not needed here.
    """
    seconds, tokens = 0.0, 0
    with open(text, encoding="utf-8", newline="\n") as file:
        lines = (line.rstrip("\n") for line in file if line != "\n")
        while batch := list(itertools.islice(lines, LINES)):
            begun = time.perf_counter()
            tokens += sum(map(len, tokenizer.backend.encode_batch_fast(batch, add_special_tokens=False)))
            seconds += time.perf_counter() - begun
    return seconds, tokens


TURNS = {"minibert": prepare_turn, "tokenizers": tokenizers_turn}


def data_worker(kind: str, job: tuple[Path, str, int], pipe) -> None:
    """Runs the turns of one program in its own process. A turn returns the seconds and the number of tokens.
    """
    text, tokenizer, threads = job
    # `tokenizers` reads these variables at its first call, so they are set before
    os.environ.update(TOKENIZERS_PARALLELISM="true", RAYON_NUM_THREADS=str(threads))
    loaded = load_tokenizer(tokenizer)
    serve(lambda: TURNS[kind](text, loaded), pipe)


def bench_data(options: DataBench) -> dict:
    """Measures and prints. Returns the content of the JSON line as a dict."""
    # a faulty tokenizer folder raises its error here, before the child processes start
    vocabulary = load_tokenizer(options.tokenizer).vocab_size
    with tempfile.TemporaryDirectory() as folder:
        base, text = Path(folder) / "base.txt", Path(folder) / "text.txt"
        write_plain_text(options.files, base)
        repeat(base, text, options.megabytes * 1e6)
        size = text.stat().st_size
        turns, memory = alternate(data_worker, list(TURNS), (text, options.tokenizer, options.threads),
                                  options.rounds)
    tokens = {kind: results[0][1] for kind, results in turns.items()}
    if len(set(tokens.values())) > 1:
        raise UserError(f"`prepare` and `tokenizers` did not find the same tokens ({tokens}), so their "
                        "speeds cannot be compared; this is a mistake in minibert, please report it "
                        "together with the text")
    seconds = {kind: [turn[0] for turn in results] for kind, results in turns.items()}
    figures, rows = speeds(size / 1e6, "MB", ".2f", seconds, memory)
    print(table([*rows.values()], f"speed of prepare and of tokenizers alone; {options.threads} threads, "
                                 f"{tokens['minibert']:,} tokens, {vocabulary:,} pieces"))
    ratio = compared(seconds, memory, "tokenizers")
    from minibert.common.runtime import describe, start  # this imports torch, see the note at the top
    machine = describe(start("cpu", "fp32", training=False))
    machine = {name: machine[name] for name in ("cpu", "cores", "python", "numpy", "tokenizers", "minibert")}
    return {"bench": "data", "options": dataclasses.asdict(options), "machine": machine,
            "vocab_size": vocabulary, "text_bytes": size, **figures, "tokens": tokens["minibert"],
            **ratio}
