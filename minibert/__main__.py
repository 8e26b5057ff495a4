"""Try one or more models: type a sentence, and each model answers. The answers are printed side by side, in
one column for each model, with the model's time in milliseconds.

A masked language model prints the most likely tokens for each [MASK]. A classifier prints the most likely
labels of a text, or of two texts with a tab between them. A regression model prints a score. A model with a
span head answers questions: type the question, a tab, and the text that has the answer. An encoder prints
the earlier sentences that are most similar to the new sentence, each with the cosine of the two sentence
vectors.
"""

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from minibert.common.console import table
from minibert.common.errors import UserError, run_script, sentence
from minibert.common.options import at_least_one
from minibert.common.runtime import Runtime, start
from minibert.data.examples import check_pieces
from minibert.data.tokenizer import Tokenizer, load_tokenizer
from minibert.hub.load_save import load
from minibert.inference.predict import embed, fill_masks, outputs, predict
from minibert.model.batch import pack
from minibert.model.encoder import Encoder
from minibert.model.heads import Classifier, MaskedLM, PreTraining, Span
from minibert.tasks.specs import TASKS
from minibert.tasks.splits import candidates_of, tokenised
from minibert.tasks.squad import Question

EXAMPLES = """examples:
  python -m minibert weights/teacher runs/demo/model
  echo 'The function returns a [MASK] of [MASK].' | python -m minibert weights/teacher
  printf 'Who wrote it?\\tThe book was written by Ada.\\n' | python -m minibert runs/squad/model
"""

CELL = 60  # `row` cuts longer texts to this number of characters


class Guest(NamedTuple):
    """A model that the user tries, with its tokenizer and the earlier sentences."""

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    vectors: dict[str, np.ndarray]  # for an encoder: the earlier sentences and their vectors of length 1


def main(argv: list[str] | None = None) -> None:
    """Loads the models, and prints the answers to each line of the input."""
    parser = argparse.ArgumentParser(prog="python -m minibert", description=__doc__, epilog=EXAMPLES,
                                     allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folder or hub name of a model")
    parser.add_argument("--best", type=int, default=5, metavar="COUNT",
                        help="number of answers to show for each model, or for each [MASK] (default: 5)")
    parser.add_argument("--threads", type=int, metavar="COUNT",
                        help="number of CPU threads (default: torch's choice)")
    options = parser.parse_args(argv)
    at_least_one(options, "best", "threads")
    runtime = start(precision="fp32", threads=options.threads, training=False)
    guests = [invite(folder, runtime) for folder in options.folders]
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    for number, line in read_lines(terminal):
        try:
            print(answers(guests, line, options.best, runtime, echo=not terminal), flush=True)
        except UserError as error:
            if not terminal:
                raise UserError(f"line {number}: {error}") from None
            print(f"error: {sentence(error)}", file=sys.stderr)


def invite(folder: str, runtime: Runtime) -> Guest:
    """Loads a model and its tokenizer, and returns them as a `Guest`. Runs the model once, so that the slow
    first forward pass is not in the measured times. Raises `UserError` if the model or the tokenizer is
    missing, or if the two do not fit together.
    """
    model = load(folder)
    if isinstance(model, PreTraining):
        model = load(folder, "mlm")  # without the next-sentence head, which is not used
    tokenizer = load_tokenizer(folder)
    check_pieces(tokenizer, model.config, folder)
    model.to(runtime.device)
    with torch.no_grad():
        model(pack(*tokenizer.encode(["the first pass"])).to(runtime.device))
    return Guest(folder, model, tokenizer, {})


def read_lines(terminal: bool) -> Iterator[tuple[int, str]]:
    """Yields a tuple (line number, text) for each line of stdin that is not blank. The first line has the
    number 1, and blank lines are counted, too. Raises `UserError` if stdin is not UTF-8.
    """
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - this import makes the arrow keys work in input()
        print("Type a sentence and press Enter. To end, press Ctrl-D.")
    else:
        sys.stdin.reconfigure(encoding="utf-8-sig")
    for number in itertools.count(1):
        try:
            line = input("> " if terminal else "").strip(" \r")
        except EOFError:
            return
        except UnicodeDecodeError:
            raise UserError("the input is not UTF-8 text") from None
        if line.strip():
            yield number, line


def answers(guests: list[Guest], line: str, best: int, runtime: Runtime, echo: bool) -> str:
    """Returns a table, as text, with the answers to a line. The table has one column for each model. If
    `echo` is true, the line itself stands above the table. Raises `UserError` if a model cannot use the line.
    """
    columns = {}
    for guest in guests:
        answer = next(answer for kind, answer in KINDS.items() if isinstance(guest.model, kind))
        begun = time.perf_counter()
        found = answer(guest, line, best, runtime)
        columns[f"{guest.name}  {(time.perf_counter() - begun) * 1e3:.1f} ms"] = found
    rows = [{head: printable(cell) for head, cell in zip(columns, cells)}
            for cells in itertools.zip_longest(*columns.values(), fillvalue="")]
    return (f"\n{printable(line)}\n" if echo else "") + table(rows)


def printable(text: str) -> str:
    """Returns `text` with an escape in place of each character that is not printable, because a terminal
    could take the character as a command. A tab becomes a vertical bar.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] if c != "\t" else "  |  " for c in text)


# ---------------------------------------------------------------- one function for each kind of model

def fill(guest: Guest, line: str, best: int, runtime: Runtime) -> list[str]:
    """Returns the cells of a column: for each [MASK], a heading and the `best` most likely tokens with their
    probabilities.
    """
    # the user types [MASK], and `names[4]` is the text of the mask token in the model's vocabulary
    text, pair = parts(line.replace("[MASK]", guest.tokenizer.names[4]))
    rows = []
    for number, pieces in enumerate(fill_masks(guest.model, guest.tokenizer, text, pair, best, runtime), 1):
        rows += [f"[MASK] {number}", *(row(piece, f"{p:.1%}") for piece, p in pieces)]
    return rows


def classify(guest: Guest, line: str, best: int, runtime: Runtime) -> list[str]:
    """Returns the cells of a column: the `best` most likely labels with their probabilities, or the score of
    a regression model. If the text was cut, the last cell is a remark.
    """
    text, pair = parts(line)
    pairs, config = None if pair is None else [pair], guest.model.config
    logits = predict(guest.model, guest.tokenizer, [text], pairs, runtime=runtime)[0]  # (K,)
    remark = cut_remark(guest, text, pair)
    if config.regression:
        return [row("score", f"{logits[0]:.3f}"), *remark]
    # A multi-label model can give a text several labels, so each label has its own sigmoid. Any other model
    # gives a text one label, so the softmax is over all labels.
    several = config.problem_type == "multi_label_classification"
    p = torch.from_numpy(logits).sigmoid() if several else torch.from_numpy(logits).softmax(-1)
    order = p.argsort(descending=True)[:best].tolist()
    return [*(row(config.labels[k], f"{p[k]:.1%}") for k in order), *remark]


def find(guest: Guest, line: str, best: int, runtime: Runtime) -> list[str]:
    """Returns the cells of a column: the `best` most probable answers to a question, with their
    probabilities. If no span of the text can be an answer, the only cell is "no answer". Raises `UserError`
    if the line has no tab.
    """
    text, pair = parts(line)
    if pair is None:
        raise UserError(f"{guest.name} answers questions: type the question, a tab, and the text that has "
                        "the answer")
    length = min(384, guest.model.config.max_positions)
    split = tokenised(replace(TASKS["squad"], max_length=length), [Question("", text, pair, ())],
                      guest.tokenizer, length // 3)
    candidates = candidates_of(split, outputs(guest.model, split.examples, runtime))[""]
    return [row(c.text or "no answer", f"{c.probability:.1%}") for c in candidates[:best]]


def nearest(guest: Guest, line: str, best: int, runtime: Runtime) -> list[str]:
    """Returns the cells of a column: the `best` earlier sentences that are most similar to this line, with
    their cosines. If the line was cut, the last cell is a remark. Adds the line to `guest.vectors`. Raises
    `UserError` if the line has a tab.
    """
    text, pair = parts(line)
    if pair is not None:
        raise UserError(f"{guest.name} is an encoder and compares single sentences, but this line has a tab")
    vector = embed(guest.model, guest.tokenizer, [text], runtime=runtime)[0]  # (D,)
    own = vector / np.linalg.norm(vector)
    cosines = {other: float(own @ vector) for other, vector in guest.vectors.items() if other != text}
    guest.vectors[text] = own
    ranked = sorted(cosines, key=cosines.get, reverse=True)[:best]
    rows = [row(other, f"{cosines[other]:.3f}") for other in ranked]
    return [*(rows or ["no earlier sentence to compare with"]), *cut_remark(guest, text, None)]


KINDS: dict[type, Callable] = {MaskedLM: fill, Classifier: classify, Span: find, Encoder: nearest}


def parts(line: str) -> tuple[str, str | None]:
    """Divides a line at its tab into two texts. Without a tab, the second text is None. Raises `UserError` if
    a text is empty, or if there are several tabs.
    """
    text, *more = (part.strip() for part in line.split("\t"))
    if len(more) > 1 or not text or more == [""]:
        raise UserError("a line must be one text, or two texts with one tab between them")
    return text, more[0] if more else None


def row(text: str, figure: str) -> str:
    """Returns one cell of the table: `text`, cut to at most `CELL` characters, then `figure`, for example a
    probability.
    """
    return f"{text if len(text) <= CELL else text[:CELL - 3] + '...'}  {figure}"


def cut_remark(guest: Guest, text: str, pair: str | None) -> list[str]:
    """Returns a list with one text, for example "read only 512 of 700 tokens", if the model reads only a part
    of `text` and `pair`. Otherwise, returns an empty list.
    """
    pieces = guest.tokenizer.pieces([text] if pair is None else [text, pair])
    tokens, room = sum(map(len, pieces)) + 1 + len(pieces), guest.model.config.max_positions
    if guest.model.sentences and guest.model.sentences.max_length:
        room = min(room, guest.model.sentences.max_length)
    return [f"read only {room} of {tokens} tokens"] if tokens > room else []


if __name__ == "__main__":
    run_script(main)
