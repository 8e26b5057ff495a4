"""Try models: type a sentence, see what each model makes of it, side by side, with the time that it took.

A masked language model fills in each [MASK]. A classifier names its labels, a regression its score; a pair of
texts is one line, with a tab between the two. A model with a span head answers a question: the question, a
tab, the text that holds the answer. An encoder says which of the other sentences are nearest (cosine of
`minibert.embed`).

Sentences are typed at a prompt, or come through a pipe, one a line.
"""

import argparse
import shutil
import statistics
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from minibert.common.errors import UserError, run_script, sentence
from minibert.common.runtime import Runtime, start
from minibert.data.examples import check_pieces, make_examples
from minibert.data.tokenizer import Tokenizer, load_tokenizer
from minibert.hub.load_save import load
from minibert.inference.predict import embed, fill_masks, outputs, predict
from minibert.model.encoder import Encoder
from minibert.model.heads import Classifier, MaskedLM, PreTraining, Span
from minibert.tasks.squad import Question
from minibert.tasks.squad_windows import decode, windows

EXAMPLES = """examples:
  python -m minibert weights/teacher runs/demo/model
  echo 'The function returns a [MASK] of [MASK].' | python -m minibert weights/teacher
  printf 'Who wrote it?\\tThe book was written by Ada.\\n' | python -m minibert runs/squad/model
"""

Row = tuple[str, str]  # an answer, and its probability, score or cosine


class Guest(NamedTuple):
    """One of the models that the user compares."""

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    vectors: dict[str, np.ndarray]  # only for encoders: the vector (D,) of each sentence so far, of length 1
    seconds: list[float]  # the time for each sentence


def main(argv: list[str] | None = None) -> None:
    """Loads the models, and then prints the answers to each line of the input."""
    parser = argparse.ArgumentParser(prog="python -m minibert", description=__doc__, epilog=EXAMPLES,
                                     allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a model, or its name on the hub")
    parser.add_argument("--best", type=int, default=5, metavar="COUNT",
                        help="how many answers of each model are shown (default: 5)")
    parser.add_argument("--threads", type=int, metavar="COUNT", help="CPU threads (default: torch's choice)")
    options = parser.parse_args(argv)
    for name in ("best", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(options, name)}")
    runtime = start(precision="fp32", threads=options.threads, training=False)
    guests = [invite(folder, runtime) for folder in options.folders]
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    lines: Iterator[tuple[int, str]] | list[tuple[int, str]] = typed() if terminal else piped()
    encoders = [guest for guest in guests if isinstance(guest.model, Encoder)]
    if encoders and not terminal:  # each line is compared with all other lines
        lines = list(lines)
        for guest in encoders:
            guest.vectors.update(vectors_of(guest, [single(guest, line) for _, line in lines], runtime))
    for number, line in lines:
        try:
            answer(guests, line, options.best, runtime, echo=not terminal)
        except UserError as error:
            if not terminal:
                raise UserError(f"line {number}: {error}") from None
            print(f"error: {sentence(error)}", file=sys.stderr)
    if guests[-1].seconds:
        medians = (f"{guest.name} {statistics.median(guest.seconds) * 1e3:.1f} ms" for guest in guests)
        count = len(guests[-1].seconds)
        print(f"\nmedian time of a sentence ({count}): {', '.join(medians)}", file=sys.stderr)


def invite(folder: str, runtime: Runtime) -> Guest:
    """Loads a model and its tokenizer, and moves the model to the device. Raises `UserError` if the folder
    does not have both.
    """
    model = load(folder)
    if isinstance(model, PreTraining):  # the published BERT has two heads; only its MLM head is used here
        model = load(folder, "mlm")
    tokenizer = load_tokenizer(folder)
    check_pieces(tokenizer, model.config, folder)
    return Guest(folder, model.to(runtime.device), tokenizer, {}, [])


def typed() -> Iterator[tuple[int, str]]:
    """Yields the lines that are typed at the prompt, with their numbers from 1, until Ctrl-D. Blank lines are
    left out.
    """
    try:
        import readline  # noqa: F401 - the arrow keys work in input()
    except ImportError:
        pass
    print("Type a sentence, and Enter; Ctrl-D ends.")
    for number in range(1, sys.maxsize):
        try:
            line = input("> ")
        except EOFError:
            return
        if line.strip():
            yield number, line.strip(" ")


def piped() -> Iterator[tuple[int, str]]:
    """Yields the lines of stdin with their numbers from 1. Blank lines are left out. Raises `UserError` if a
    line is not UTF-8 text.
    """
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip(" \r\n")
        except UnicodeDecodeError:
            raise UserError(f"line {number} is not UTF-8 text") from None
        if line.strip():
            yield number, line


def answer(guests: list[Guest], line: str, best: int, runtime: Runtime, echo: bool) -> None:
    """Prints the answers of all models to a line, side by side. Raises `UserError` if a model cannot read the
    line.
    """
    columns = []
    for guest in guests:
        say = next(say for kind, say in KINDS.items() if isinstance(guest.model, kind))
        if not guest.seconds:
            say(guest, line, best, runtime)  # the first pass of a model is slow, so it is not measured
        begun = time.perf_counter()
        rows = say(guest, line, best, runtime)
        guest.seconds.append(time.perf_counter() - begun)
        columns.append([(guest.name, f"{guest.seconds[-1] * 1e3:.1f} ms"), *rows])
    if echo:
        print(f"\n{printable(line)}")
    print(side_by_side(columns), flush=True)


# ---------------------------------------------------------------- one function for each kind of model

def fill(guest: Guest, line: str, best: int, runtime: Runtime) -> list[Row]:
    """The most likely tokens for each [MASK], with their probabilities."""
    # some vocabularies have another name for [MASK]
    text, pair = parts(line.replace("[MASK]", guest.tokenizer.names[4]))
    rows: list[Row] = []
    for number, pieces in enumerate(fill_masks(guest.model, guest.tokenizer, text, pair, best, runtime), 1):
        rows += [(f"[MASK] {number}", ""), *((piece, percent(p)) for piece, p in pieces)]
    return rows


def classify(guest: Guest, line: str, best: int, runtime: Runtime) -> list[Row]:
    """The most likely labels with their probabilities, or the score of a regression."""
    text, pair = parts(line)
    pairs = None if pair is None else [pair]
    logits = predict(guest.model, guest.tokenizer, [text], pairs, runtime=runtime)[0]  # (K,)
    remark = cut_remark(guest, text, pair)
    if guest.model.config.regression:
        return [("score", f"{logits[0]:.3f}"), *remark]
    # each label has its own probability
    several = guest.model.config.problem_type == "multi_label_classification"
    p = torch.from_numpy(logits).sigmoid() if several else torch.from_numpy(logits).softmax(-1)
    order = p.argsort(descending=True)[:best].tolist()
    return [*((guest.model.config.labels[k], percent(p[k])) for k in order), *remark]


def find(guest: Guest, line: str, best: int, runtime: Runtime) -> list[Row]:
    """The best answers to a question in its text, with their probabilities."""
    text, pair = parts(line)
    if pair is None:
        raise UserError(f"{guest.name} answers questions: type the question, a tab, and the text that holds "
                        "the answer")
    question = Question("", text, pair, ())
    length = min(384, guest.model.config.max_positions)  # a longer text is divided into overlapping windows
    found = windows([question], guest.tokenizer, length, stride=max(1, length // 3),
                    max_query=min(64, length // 3))
    examples = make_examples([w.ids for w in found], [w.segments for w in found], np.full(len(found), -1))
    logits = outputs(guest.model, examples, runtime)  # (N, 2)
    by_window = np.split(logits, np.cumsum(examples.lengths)[:-1])
    candidates = decode(found, [x[:, 0] for x in by_window], [x[:, 1] for x in by_window], question)
    return [(c.text or "no answer", percent(c.probability)) for c in candidates[:best]]


def nearest(guest: Guest, line: str, best: int, runtime: Runtime) -> list[Row]:
    """The sentences so far whose vectors have the largest cosine with the vector of this line."""
    text = single(guest, line)
    own = vectors_of(guest, [text], runtime)[text]
    others = {other: float(own @ vector) for other, vector in guest.vectors.items() if other != text}
    guest.vectors[text] = own
    ranked = sorted(others.items(), key=lambda item: -item[1])[:best]
    if not ranked:
        return [("nothing to compare with yet", "")]
    return [*((other, f"{cosine:.3f}") for other, cosine in ranked), *cut_remark(guest, text, None)]


KINDS: dict[type, Callable] = {MaskedLM: fill, Classifier: classify, Span: find, Encoder: nearest}


def parts(line: str) -> tuple[str, str | None]:
    """The text of a line before its tab, and the text after its tab (None: the line has no tab)."""
    text, *more = (part.strip() for part in line.split("\t"))
    if len(more) > 1 or not text or more == [""]:
        raise UserError("a line is one text, or two texts with one tab between them")
    return text, more[0] if more else None


def single(guest: Guest, line: str) -> str:
    """The text of a line without a tab. Raises `UserError` if the line has a tab."""
    text, pair = parts(line)
    if pair is not None:
        raise UserError(f"{guest.name} is an encoder and compares single sentences: this line has a tab")
    return text


def vectors_of(guest: Guest, texts: list[str], runtime: Runtime) -> dict[str, np.ndarray]:
    """The vector of each text, divided by its length."""
    if not texts:
        return {}
    vectors = torch.from_numpy(embed(guest.model, guest.tokenizer, texts, runtime=runtime))  # (n, D)
    return dict(zip(texts, torch.nn.functional.normalize(vectors).numpy()))


def cut_remark(guest: Guest, text: str, pair: str | None) -> list[Row]:
    """A row with a remark, if a text is longer than the model can read."""
    pieces = guest.tokenizer.pieces([text] if pair is None else [text, pair])
    tokens, room = sum(map(len, pieces)) + 1 + len(pieces), guest.model.config.max_positions
    if guest.model.sentences and guest.model.sentences.max_length:
        room = min(room, guest.model.sentences.max_length)
    return [(f"read {room} of {tokens} tokens", "")] if tokens > room else []


# ---------------------------------------------------------------- columns of text

def percent(p: float) -> str:
    """A probability in percent."""
    return f"{100 * float(p):.1f} %"


def printable(text: str) -> str:
    """The text without control characters, which could change the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] if c != "\t" else "  |  " for c in text)


def cells(text: str) -> int:
    """The width of a text in cells of a terminal. A Chinese character has two cells, and a combining mark
    none.
    """
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
               for c in text)


def shortened(text: str, room: int, keep_end: bool = False) -> str:
    """Shortens a text that is wider than `room` cells. Its end is left out, or its beginning if `keep_end` is
    true.
    """
    text = printable(text)
    if cells(text) <= room:
        return text
    while text and cells(text) > room - 3:
        text = text[1:] if keep_end else text[:-1]
    return f"...{text}" if keep_end else f"{text}..."


def side_by_side(columns: list[list[Row]]) -> str:
    """Puts the rows of all models side by side. The first row has the name of the model. Long texts are
    shortened, so that all columns fit on the screen.
    """
    room = max(12, shutil.get_terminal_size((100, 24)).columns // len(columns) - 14)
    padded = []
    for rows in columns:
        rows = [(shortened(text, room, keep_end=row == 0), figure) for row, (text, figure) in enumerate(rows)]
        left, right = max(cells(text) for text, _ in rows), max(len(figure) for _, figure in rows)
        padded.append([text + " " * (left - cells(text) + 2) + figure.rjust(right) for text, figure in rows])
    widths = [cells(column[0]) for column in padded]
    lines = ["    ".join(cell or " " * width for cell, width in zip(line, widths))
             for line in zip_longest(*padded, fillvalue="")]
    return "\n".join(f"  {line}".rstrip() for line in lines)


if __name__ == "__main__":
    run_script(main)
