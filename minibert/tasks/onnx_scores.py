"""Compares the dev scores of a fine-tuned model in fp32 with the dev scores of its int8 ONNX file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from minibert.common.console import say
from minibert.common.errors import UserError
from minibert.common.runtime import Runtime
from minibert.data.tokenizer import Tokenizer
from minibert.hub.onnx_export import open_file, run_file
from minibert.model.batch import groups, rows_of
from minibert.model.heads import Span
from minibert.tasks.models import in_order
from minibert.tasks.splits import Split, answers_of, judge, read_rows_to_judge, score, tokenise_splits

# The largest number of tokens in a batch, padding not counted. Each row is padded to the longest row of its
# batch, so a small batch has less padding than a large batch.
PADDED_TOKENS = 1024


def file_outputs(path: Path, model: nn.Module, split: Split) -> np.ndarray:
    """Returns the logits of an ONNX file on a split: an array with one row for each example (for SQuAD: for
    each token). `path` is the ONNX file, which was made from `model`.
    """
    session, examples, pieces, places = open_file(path), split.examples, [], []
    for group in groups(examples.lengths, PADDED_TOKENS):
        batch = examples.batch(group)
        found = run_file(session, model, batch, int(batch.lengths.max()))
        spans = isinstance(model, Span)
        pieces.append(torch.stack(found, -1) if spans else found[0])
        places.append(rows_of(examples.starts[group], examples.lengths[group])[0] if spans else group)
    return torch.cat(pieces).numpy()[np.argsort(np.concatenate(places))]


def judge_of(model: nn.Module, tokenizer: Tokenizer, name: str, task: str, data: str | None,
             most: float, max_length: int | None = None) -> Callable[[Path], None]:
    """Returns a function `judge_file(path)`. This function prints the scores of the int8 file at `path` and
    of `model` in fp32 on the task's first dev split (for a csv file: on all rows). `judge_file` raises
    `UserError` if the task's first metric is more than `most` points lower in int8 than in fp32.

    `judge_of` puts the classes of `model` into the task's order. `name` is the folder of `model`. `task` and
    `data` are the values of --task and --data of convert.py. If `max_length` is None, the maximum length is
    that of the task, or the model's number of positions if this number is smaller.
    """
    known, rows = read_rows_to_judge(task, data, name)
    in_order(model, known, name)
    if max_length is None:
        max_length = min(known.max_length, model.config.max_positions)
    known = replace(known, max_length=max_length)
    split = next(iter(tokenise_splits(known, rows, tokenizer, 128, model.config, name).values()))

    def judge_file(path: Path) -> None:
        before, exact = judge(model, known, split, Runtime(torch.device("cpu"), "fp32"))
        found = file_outputs(path, model, split)
        after = score(known, split, answers_of(known, split, found))
        line = ", ".join(f"{metric} {value:.2f} in fp32 and {after[metric]:.2f} in int8"
                         for metric, value in before.items())
        if known.kind == "classes":
            line += f"; {(found.argmax(-1) != exact.argmax(-1)).sum()} answers changed"
        say(f"{known.name}, {len(split.rows):,} examples: {line}")
        metric = next(iter(before))
        if not before[metric] - after[metric] <= most:
            raise UserError(f"int8 costs {before[metric] - after[metric]:.2f} points of {metric}, more than "
                            f"--most-loss {most:g}; nothing was saved")
    return judge_file
