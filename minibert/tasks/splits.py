"""Reads and tokenises the splits of a task, and computes a model's answers, scores and errors on a split."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from minibert.common.console import Progress, say
from minibert.common.disk import read_text, write_text
from minibert.common.errors import UserError
from minibert.common.runtime import Runtime
from minibert.data.examples import Examples, check_examples, check_pieces, encode, make_examples
from minibert.data.tokenizer import Tokenizer
from minibert.hub.load_save import config_and_head
from minibert.inference.predict import MICRO_TOKENS, outputs
from minibert.model.config import Config
from minibert.tasks import metrics, squad_windows, squad
from minibert.tasks.csv_files import read_csv, read_csv_splits
from minibert.tasks.official_files import read_examples
from minibert.tasks.specs import TASKS, Example, Task


class Split(NamedTuple):
    """One split: the rows of its file, and the tokenised examples. For SQuAD, a row is a question, and a
    question has one example for each window of its context (see squad_windows.py).
    """
    rows: list
    examples: Examples
    windows: list[squad_windows.Window] | None = None


def dev_of(task: Task, splits: dict[str, Split]) -> dict[str, Split]:
    """Returns a dict with only the dev splits of `splits`."""
    return {name: splits[name] for name in task.dev_splits or ("dev",)}


def read_rows(task: str, data: str | None, dev: str | None, predict: bool = False
              ) -> tuple[Task, dict[str, list]]:
    """Returns a tuple: the `Task`, and a dict from the names of its splits to lists of rows. The splits are
    train and the dev splits. If `predict` is true, the dict also has the test splits of a GLUE task.

    `task` is the path of a csv file, or the name of a task with its files in the folder `data`. If `task` is
    a csv file, `dev` may be a second csv file with the dev rows.
    """
    if task in TASKS:
        known = TASKS[task]
        test_splits = known.test_splits if predict else ()
        return known, read_splits(known, data, ("train", *known.dev_splits, *test_splits))
    known, train, held_out = read_csv_splits(task, dev)
    return known, {"train": train, "dev": held_out}


def read_rows_to_judge(task: str, data: str | None, model: str) -> tuple[Task, dict[str, list]]:
    """Returns a tuple: the `Task`, and a dict from the names of its dev splits to lists of rows. `model` is
    the name of the fine-tuned model to evaluate. If `task` is a csv file, all its rows are in one split with
    the name "all rows", and the `Task` has the labels of the model, because the file may lack some labels.
    """
    if task in TASKS:
        return TASKS[task], read_splits(TASKS[task], data, TASKS[task].dev_splits)
    config, head = config_and_head(model)
    if head not in ("classification", None):
        raise UserError(f"{model} has no head for {task}: fine-tune the model first")
    judged = Task(Path(task).name, config.labels, config.labels, ("accuracy", "matthews"))
    if config.regression:
        judged = Task(judged.name, (), (), ("pearson", "spearman"), kind="score")
    rows = read_csv(task, judged)[1]
    if rows[0].label is None:
        raise UserError(f"{task} has no column 'label' or 'score', which --evaluate needs")
    return judged, {"all rows": rows}


def read_splits(task: Task, data: str, names: tuple[str, ...]) -> dict[str, list]:
    """Reads the official files of the splits `names`. Returns a dict from these names to lists of rows. If AX
    cannot be read, the dict has no entry for AX, and a message is printed.
    """
    rows = {}
    for name in names:
        try:
            rows[name] = read_examples(task, data, name)
        except UserError as error:
            if name != "ax":
                raise
            say(f"no predictions for AX: {error}")
    return rows


def tokenise_splits(task: Task, rows: dict[str, list], tokenizer: Tokenizer, stride: int,
                    config: Config, model: str) -> dict[str, Split]:
    """Returns a dict from the name of each split to its tokenised `Split`. `rows` is a dict from the names to
    lists of rows. `config` is the model's config, and `model` is the model's name in error messages. Raises
    `UserError` if the model has too few positions or token types, or a smaller vocabulary than the tokenizer.
    """
    check_pieces(tokenizer, config, model)
    if task.max_length > config.max_positions:
        raise UserError(f"--max-length {task.max_length} is more than the model's {config.max_positions} "
                        "positions; give a smaller number")
    splits = {name: tokenised(task, split, tokenizer, stride) for name, split in rows.items()}
    for split in splits.values():
        check_examples(split.examples, config, model)
    return splits


def tokenised(task: Task, rows: list, tokenizer: Tokenizer, stride: int) -> Split:
    """Tokenises the rows of one split. `stride` is used for SQuAD only (see `squad_windows.windows`)."""
    if task.kind == "span":
        windows = squad_windows.windows(rows, tokenizer, task.max_length, stride)
        spans = np.array([(w.start, w.end) for w in windows], dtype=np.int64)
        return Split(rows, make_examples([w.ids for w in windows], [w.segments for w in windows], spans),
                     windows)
    missing, kind = (math.nan, np.float32) if task.kind == "score" else (-1, np.int64)
    labels = np.array([missing if row.label is None else row.label for row in rows], dtype=kind)
    pairs = None if rows[0].pair is None else [row.pair for row in rows]
    return Split(rows, encode(tokenizer, [row.text for row in rows], pairs, task.max_length, labels))


def read_augmented(path: str, task: Task, pairs: bool, held_out: Iterable[str]) -> list[Example]:
    """Returns a list of the examples in a file that data/augment.py wrote. `pairs` is True if the training
    set has pairs of texts, and `held_out` has the ids of the dev rows. Raises `UserError` if the file has
    single texts and the training set has pairs, or the reverse. Also raises `UserError` if the file has a
    copy of a dev row.
    """
    examples = read_csv(path, task)[1]
    if (examples[0].pair is not None) != pairs:
        raise UserError(f"{path} and the training set differ: one has pairs of texts, the other has single "
                        "texts")
    if set(held_out) & {example.id for example in examples}:
        raise UserError(f"{path} was made from rows that are dev rows here: make it again, without --dev")
    return examples


def read_transfer(task: Task, files: tuple[str, ...], tokenizer: Tokenizer, pairs: bool) -> Split:
    """Reads files of texts without labels. Returns a `Split` with all texts, tokenised. If `pairs` is false,
    a line has one text. If `pairs` is true, a line has two texts with a tab between them. Blank lines are
    skipped. Raises `UserError` for any other line.
    """
    found = []
    for name in files:
        for number, line in enumerate(read_text(Path(name)).split("\n"), 1):
            texts = [text for text in line.split("\t") if text.strip()]
            if texts and (len(texts), line.count("\t")) != (1 + pairs, pairs):
                raise UserError(f"{name}, line {number}: the training set has "
                                + ("pairs, so a line is two texts with one tab between them" if pairs else
                                   "single texts, so a line is one text: replace its tab by a space"))
            if texts:
                found.append(Example(str(number), texts[0], texts[1] if pairs else None, None))
    if not found:
        raise UserError(f"--transfer {' '.join(files)}: there is no text")
    # For SQuAD, a pair is a question and a context. The pairs have no answers, so they are tokenised as for
    # classification: a long context is cut and not divided into windows.
    if task.kind == "span":
        task = replace(task, kind="classes")
    return tokenised(task, found, tokenizer, stride=0)


def some_numbers(total: int, n: int) -> np.ndarray:
    """Returns an array of `n` of the numbers 0 to `total` - 1, chosen with a fixed seed and sorted."""
    return np.sort(np.random.default_rng(0).permutation(total)[:n])


def some_of(split: Split, n: int) -> Split:
    """Returns a split with only `n` examples of `split`. Every call chooses the same `n` examples."""
    chosen = some_numbers(len(split.examples.lengths), n)
    if split.windows is None:
        return Split([split.rows[i] for i in chosen], split.examples.part(chosen))
    return Split(split.rows, split.examples.part(chosen), [split.windows[i] for i in chosen])


def model_outputs(model: nn.Module, split: Split, runtime: Runtime, micro_tokens: int, what: str
                  ) -> np.ndarray:
    """Returns an array with the model's logits on a split: one row for each example (for SQuAD: for each
    token). `what` names the work in the progress line.
    """
    return outputs(model, split.examples, runtime, micro_tokens,
                   Progress(what, int(split.examples.lengths.sum()), "tokens"))


def answers_of(task: Task, split: Split, logits: np.ndarray):
    """Computes the answers from a model's `logits`. Returns an array with a class number or a score for each
    example. For SQuAD, returns the dict of `candidates_of`.
    """
    if task.kind == "span":
        return candidates_of(split, logits)
    return logits[:, 0] if task.kind == "score" else logits.argmax(-1)


def score(task: Task, split: Split, answers) -> dict[str, float]:
    """Returns a dict from the names of the task's metrics to their values in percent. `answers` is a result
    of `answers_of`.
    """
    if task.kind == "span":
        return squad.evaluate(split.rows, {name: found[0].text for name, found in answers.items()})
    return {name: 100 * value
            for name, value in metrics.score(task.metrics, answers, split.examples.labels).items()}


def judge(model: nn.Module, task: Task, split: Split, runtime: Runtime,
          micro_tokens: int = MICRO_TOKENS) -> tuple[dict[str, float], np.ndarray]:
    """Returns a tuple: a dict with the model's scores on a split (see `score`), and an array with the model's
    logits (see `model_outputs`).
    """
    logits = model_outputs(model, split, runtime, micro_tokens, f"judging {len(split.rows):,} examples")
    return score(task, split, answers_of(task, split, logits)), logits


def candidates_of(split: Split, logits: np.ndarray) -> dict[str, list[squad.Candidate]]:
    """Returns a dict from each question id to a list of answers, the best answer first. `logits` (N, 2) has a
    start logit and an end logit for each of the N tokens of all windows.
    """
    windows: dict[int, list] = {}
    for window, piece in zip(split.windows, np.split(logits, np.cumsum(split.examples.lengths)[:-1])):
        windows.setdefault(window.question, []).append((window, piece))
    return {split.rows[q].id: squad_windows.decode(found, split.rows[q]) for q, found in windows.items()}


def write_errors(path: Path, task: Task, split: Split, answers) -> None:
    """Writes a table of the examples with wrong answers. For a regression task, the table has the 10 % of the
    examples with the largest errors.
    """
    if task.kind == "span":
        best = {id: candidates[0].text for id, candidates in answers.items()}
        wrong = [(row.id, best[row.id], " | ".join(dict.fromkeys(gold.text for gold in row.answers)),
                  row.question) for row in split.rows
                 if not any(squad.exact_match(best[row.id], gold.text) for gold in row.answers)]
    elif task.kind == "score":
        order = np.argsort(-np.abs(answers - split.examples.labels), kind="stable")
        wrong = [(split.rows[i].id, f"{answers[i]:.3f}", f"{split.rows[i].label:.3f}", *split.rows[i][1:3])
                 for i in order[:max(1, len(order) // 10)]]
    else:
        wrong = [(row.id, task.labels[answer], task.labels[row.label], row.text, row.pair)
                 for row, answer in zip(split.rows, answers) if answer != row.label]
    lines = ["\t".join(" ".join(str(cell or "").split()) for cell in row) for row in wrong]
    write_text(path, "\n".join(["id\tanswer\texpected\ttext\tpair", *lines]) + "\n")


def baseline(task: Task, train: Split, split: Split) -> dict[str, float] | None:
    """Returns a dict with the scores on `split` if every answer is the most frequent class of the training
    set (for a regression task: the mean score of the training set). Returns None for SQuAD.
    """
    if task.kind == "span":
        return None
    labels = train.examples.labels
    constant = labels.mean() if task.kind == "score" else np.bincount(labels).argmax()
    return score(task, split, np.full(len(split.rows), constant))
