"""A task's splits as a model sees them, and what the model is worth on them: scores, answers, errors.

`options` are those of finetune.py.
"""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from minibert.common.console import Progress
from minibert.common.disk import read_json, read_text, write_text
from minibert.common.errors import UserError
from minibert.common.runtime import Runtime
from minibert.data.examples import Examples, check_examples, encode, make_examples
from minibert.data.tokenizer import Tokenizer
from minibert.hub.load_save import check_pieces, load_config, stated_head
from minibert.inference.predict import MICRO_TOKENS, outputs
from minibert.tasks import metrics, squad_windows, squad
from minibert.tasks.csv_files import read_csv, read_csv_splits
from minibert.tasks.official_files import majority, read_examples
from minibert.tasks.specs import SQUAD, TASKS, Example, Task, with_tinybert_settings


class Split(NamedTuple):
    """One split: its rows as read, and as the model sees them.

    SQuAD's rows are questions, seen in windows.
    """

    rows: list
    examples: Examples
    windows: list[squad_windows.Window] | None = None


def dev_of(task: Task, splits: dict[str, Split]) -> dict[str, Split]:
    """The splits that a model is judged on; the first decides."""
    return {name: splits[name] for name in task.dev_splits or ("dev",)}


def rows_of_task(options) -> tuple[Task, dict[str, list]]:
    """The task and the rows of its splits: train, the dev splits, and with --predict the test ones.

    With --evaluate the dev splits without the training ones; of a csv "all rows", as nothing is held out.
    """
    if options.task == "squad":
        files = ({"dev": "dev-v1.1.json"} if options.evaluate
                 else {"train": "train-v1.1.json", "dev": "dev-v1.1.json"})
        folder = Path(options.data) / SQUAD.folder
        folder = folder if folder.is_dir() else Path(options.data)
        for name in files.values():
            if not (folder / name).exists():
                raise UserError(f"{folder / name} does not exist: run python data/download.py squad --out "
                                f"data, or give --data the folder with {SQUAD.download}")
        return SQUAD, {split: squad.read_squad(folder / name) for split, name in files.items()}
    if options.task in TASKS:
        task = TASKS[options.task]
        wanted = ([] if options.evaluate else ["train"]) + list(task.dev_splits)
        if options.predict:
            wanted += [name for name in task.test_splits if name != "ax"]
        return task, {split: read_examples(task, options.data, split) for split in wanted}
    if options.evaluate:  # the labels are the model's: a file to judge it on may lack some
        config, head = load_config(options.model), stated_head(options.model)
        if head not in ("classification", None):
            raise UserError(f"{options.model} has no head for {options.task}: fine-tune it first")
        labels = () if config.regression else config.labels
        path = options.dev or options.task
        task = Task(options.model, labels, labels, ("pearson", "spearman") if config.regression
                    else ("accuracy", "matthews"), regression=config.regression)
        rows = read_csv(path, task)[1]
        if rows[0].label is None:
            raise UserError(f"{path} has no column 'label' or 'score' to judge by")
        return dataclasses.replace(task, name=Path(path).name), {"all rows": rows}
    task, train, dev = read_csv_splits(options.task, options.dev)
    return task, {"train": train, "dev": dev}


def read_task(options, tokenizer: Tokenizer) -> tuple[Task, dict[str, Split]]:
    """The task with the options' settings in it, and its splits as the model sees them:
    those of `rows_of_task`, and where they were asked for "augmented" and "transfer".
    """
    config = load_config(options.model)
    check_pieces(tokenizer, config, options.model)
    task, rows = rows_of_task(options)
    if options.augmented and not options.evaluate:
        rows["augmented"] = read_augmented(options, task, rows)
    if options.method == "tinybert":
        task = with_tinybert_settings(task)
    changed = {name: getattr(options, name)
               for name in ("batch", "lr", "epochs", "max_length", "intermediate_epochs")
               if getattr(options, name) is not None}
    task = dataclasses.replace(task, **changed)
    if task.max_length > config.max_positions:
        raise UserError(f"--max-length {task.max_length} is more than the model's {config.max_positions} "
                        "positions; give a smaller one")
    splits = {name: tokenised(task, some, tokenizer, options.stride) for name, some in rows.items()}
    if options.transfer and not options.evaluate:
        pairs = bool(splits["train"].examples.segments.any())  # of SQuAD, too
        splits["transfer"] = read_transfer(task, options.transfer, tokenizer, pairs)
    for split in splits.values():
        check_examples(split.examples, config, options.model)
    return task, splits


def read_augmented(options, task: Task, rows: dict[str, list]) -> list[Example]:
    """What data/augment.py made of the training set; `rows` are those of the other splits."""
    examples = read_csv(options.augmented, task)[1]
    if (examples[0].pair is None) != (rows["train"][0].pair is None):
        raise UserError(f"of {options.augmented} and the training set one has pairs of texts "
                        "and the other has single ones")
    held_out = set()
    if options.task not in TASKS and not options.dev:  # a csv's own ids may repeat
        held_out = {row.id for row in rows["dev"]} - {row.id for row in rows["train"]}
    if held_out & {example.id for example in examples}:
        raise UserError(f"{options.augmented} was made from rows of {options.task} that are held out here: "
                        "make it again, without --dev")
    return examples


def tokenised(task: Task, rows: list, tokenizer: Tokenizer, stride: int) -> Split:
    """Rows as the model sees them."""
    if task.name == "squad":
        windows = squad_windows.windows(rows, tokenizer, task.max_length, stride)
        spans = np.array([(w.start, w.end) for w in windows], dtype=np.int64)
        return Split(rows, make_examples([w.ids for w in windows], [w.segments for w in windows], spans),
                     windows)
    missing, kind = (math.nan, np.float32) if task.regression else (-1, np.int64)
    labels = np.array([missing if row.label is None else row.label for row in rows], dtype=kind)
    pairs = None if rows[0].pair is None else [row.pair for row in rows]
    return Split(rows, encode(tokenizer, [row.text for row in rows], pairs, task.max_length, labels))


def read_transfer(task: Task, files: tuple[str, ...], tokenizer, pairs: bool) -> Split:
    """Unlabelled texts, one a line, or with `pairs` two, a tab between them; else a `UserError`."""
    lines = []
    for name in files:
        for number, line in enumerate(read_text(Path(name)).split("\n"), 1):
            texts = [text for text in line.split("\t") if text.strip()]
            if texts and (len(texts), line.count("\t")) != (1 + pairs, pairs):
                raise UserError(f"{name}, line {number}: the training set has "
                                + ("pairs, so a line is two texts with one tab between them" if pairs else
                                   "single texts, so a line is one text: replace its tab by a space"))
            lines += [texts] if texts else []
    if not lines:
        raise UserError(f"--transfer {' '.join(files)}: there is no text")
    labels = np.full(len(lines), math.nan, np.float32) if task.regression else np.full(len(lines), -1)
    second = [texts[1] for texts in lines] if pairs else None
    return Split(lines, encode(tokenizer, [texts[0] for texts in lines], second, task.max_length, labels))


def fingerprints(task: Task, splits: dict[str, Split]) -> dict[str, str]:
    """A hash of what the model sees of each split that it learns from or is judged on."""
    return {name: split.examples.fingerprint for name, split in splits.items()
            if name not in task.test_splits}


def check_data(out: Path, options, now: dict[str, str]) -> None:
    """`UserError` where the run in `out` was started with other examples than those of `fingerprints` now:
    resumed, it would be neither run.
    """
    if not (out / "config.json").exists():
        return
    before = read_json(out / "config.json").get("data")
    for split, fingerprint in now.items():
        if isinstance(before, dict) and before.get(split) == fingerprint:
            continue
        option = "data" if options.task in (*TASKS, "squad") else "task"
        if getattr(options, split, None):  # dev, augmented and transfer
            option = split
        files = getattr(options, option)
        raise UserError(f"--{option} {files if isinstance(files, str) else ' '.join(files)}: the {split} "
                        f"examples are not those that the run in {out} was started with; give the same "
                        "files, or start a new run with another --out")


def some_numbers(total: int, n: int) -> np.ndarray:
    """`n` of the numbers below `total`, the first of a fixed shuffle, in ascending order."""
    return np.sort(np.random.default_rng(0).permutation(total)[:n])


def some_of(split: Split, n: int) -> Split:
    """`n` examples, the same ones always."""
    chosen = some_numbers(len(split.examples.lengths), n)
    if split.windows is None:
        return Split([split.rows[i] for i in chosen], split.examples.part(chosen))
    return Split(split.rows, split.examples.part(chosen), [split.windows[i] for i in chosen])


def ask(model: nn.Module, split: Split, runtime: Runtime, micro_tokens: int, what: str) -> np.ndarray:
    """The model's outputs on a split, as `inference.outputs` has them; `what` names the work as it goes."""
    return outputs(model, split.examples, runtime, micro_tokens,
                   Progress(what, int(split.examples.lengths.sum()), "tokens"))


def answers_of(task: Task, split: Split, out: np.ndarray, order: list[int] | None = None):
    """What a model's outputs answer: class numbers (n,), scores (n,), or SQuAD's candidates by question id.

    `order` gives for each class of the task its number in the model, where it has them in another order.
    """
    if task.name == "squad":
        return candidates_of(split, out)
    return out[:, 0] if task.regression else (out if order is None else out[:, order]).argmax(-1)


def score(task: Task, split: Split, answers) -> dict[str, float]:
    """The task's metrics, in percent, of the answers of `answers_of`."""
    if task.name == "squad":
        return squad.evaluate(split.rows, {name: some[0].text for name, some in answers.items()})
    return {name: 100 * value
            for name, value in metrics.score(task.metrics, answers, split.examples.labels).items()}


def judge(model: nn.Module, task: Task, split: Split, runtime: Runtime, micro_tokens: int = MICRO_TOKENS,
          order: list[int] | None = None) -> tuple[dict[str, float], np.ndarray]:
    """Scores of a model on a split, in percent, and the outputs that they were read from."""
    out = ask(model, split, runtime, micro_tokens, f"judging {len(split.rows):,} examples")
    return score(task, split, answers_of(task, split, out, order)), out


def candidates_of(split: Split, logits: np.ndarray) -> dict[str, list[squad.Candidate]]:
    """The n-best answers of every question from the logits (N, 2) of all windows."""
    pieces = np.split(logits, np.cumsum(split.examples.lengths)[:-1])
    by_question: dict[int, list[int]] = {}
    for number, window in enumerate(split.windows):
        by_question.setdefault(window.question, []).append(number)
    return {split.rows[q].id: squad_windows.decode([split.windows[i] for i in some],
                                                   [pieces[i][:, 0] for i in some],
                                                   [pieces[i][:, 1] for i in some], split.rows[q])
            for q, some in by_question.items()}


def write_errors(path: Path, task: Task, split: Split, answers) -> None:
    """What the model gets wrong, as a table:
    answer given and expected, and the text; the worst scores first.
    """
    clean = lambda text: " ".join(str(text or "").split())  # noqa: E731
    if task.name == "squad":
        wrong = [(row.id, answers[row.id][0].text, " | ".join(dict.fromkeys(a.text for a in row.answers)),
                  row.question, "")
                 for row in split.rows if not max((squad.exact_match(answers[row.id][0].text, a.text)
                                                   for a in row.answers), default=0)]
    elif task.regression:
        order = np.argsort(-np.abs(answers - split.examples.labels), kind="stable")
        wrong = [(split.rows[i].id, f"{answers[i]:.3f}", f"{split.rows[i].label:.3f}", split.rows[i].text,
                  split.rows[i].pair)
                 for i in order[:max(1, len(order) // 10)]]
    else:
        wrong = [(row.id, task.labels[answer], task.labels[row.label], row.text, row.pair)
                 for row, answer in zip(split.rows, answers) if answer != row.label]
    lines = ["id\tanswer\texpected\ttext\tpair", *("\t".join(map(clean, row)) for row in wrong)]
    write_text(path, "\n".join(lines) + "\n")


def baseline(task: Task, train: Split | None, split: Split) -> dict[str, float] | None:
    """The scores of always giving the commonest answer of the training set."""
    if task.name == "squad" or train is None:
        return None
    return score(task, split, np.full(len(split.rows), majority(train.rows, task)))
