"""Loads the student and the fine-tuned teacher of a task, and computes the teacher's outputs."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

import minibert
from minibert.common.errors import UserError
from minibert.common.runtime import Runtime
from minibert.data.examples import Examples
from minibert.hub.load_save import config_and_head
from minibert.inference.predict import MICRO_TOKENS, outputs
from minibert.model.batch import groups
from minibert.model.config import Config
from minibert.model.heads import Classifier, Span
from minibert.tasks.official_files import class_of
from minibert.tasks.specs import Task


MULTI_LABEL = "multi_label_classification"


def head_kind(task: Task) -> type:
    """Returns the Python class of a model for the task: `Span` or `Classifier`."""
    return Span if task.kind == "span" else Classifier


def load_for_task(name: str, task: Task, seed: int) -> nn.Module:
    """Loads the model `name` with a head for the task. If the model's head fits the task (`keeps_head`), the
    model keeps this head. Otherwise, the model gets a new head, whose random weights depend on `seed`.
    """
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `load` warns about a new head, but here a new head is expected
        if task.kind == "span":
            return minibert.load(name, "span")
        stated = "regression" if task.kind == "score" else None
        if keeps_head(name, task):
            return in_order(minibert.load(name, "classification", problem_type=stated), task, name)
        return minibert.load(name, "classification", labels=task.labels or ("score",), problem_type=stated)


def keeps_head(name: str, task: Task) -> bool:
    """Returns True if the model already has a head that fits the task. The head may have the task's classes
    in another order than the task.
    """
    config, head = config_and_head(name)
    if task.kind != "span" and (config.problem_type == MULTI_LABEL
                                or config.regression != (task.kind == "score")
                                or task.kind == "classes" and label_order(config.labels, task) is None):
        return False
    if head is None:  # config.json does not name the head, so the class of the loaded model decides
        return isinstance(minibert.load(name), head_kind(task))
    return head == ("span" if task.kind == "span" else "classification")


def load_tuned(name: str, task: Task) -> nn.Module:
    """Loads a model that was fine-tuned for the task. Raises `UserError` if the model's head does not fit the
    task.
    """
    return in_order(minibert.load(name), task, name)


@torch.no_grad()
def in_order(model: nn.Module, task: Task, name: str) -> nn.Module:
    """Changes and returns a classifier: its classes get the order and the names of the task's classes. A
    model for scores or spans is returned without changes. `name` is the model's name in error messages.
    Raises `UserError` if the model's head does not fit the task, or if model and task have different classes.
    """
    if not isinstance(model, head_kind(task)):
        raise UserError(f"{name} has no head for {task.name}: fine-tune the model first")
    if model.config.problem_type == MULTI_LABEL:
        raise UserError(f"{name} is a multi-label classifier (problem_type {MULTI_LABEL}), but each text of "
                        f"{task.name} has one class: this model can neither be evaluated nor distilled")
    if task.kind != "span" and model.config.regression != (task.kind == "score"):
        raise UserError(f"{name} predicts {'scores' if model.config.regression else 'classes'}, but "
                        f"{task.name} has {'scores' if task.kind == 'score' else 'classes'}")
    if task.kind == "classes":
        order = label_order(model.config.labels, task)
        if order is None:
            raise UserError(f"{name} has the labels {', '.join(model.config.labels)}, and {task.name} has "
                            f"{', '.join(task.labels)}: both must have the same labels, in any order; if "
                            f"names differ, write the names of {task.name} into id2label in its config.json")
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter[order].clone())
        model.config = replace(model.config, labels=task.labels)
    return model


def label_order(labels: tuple[str, ...], task: Task) -> list[int] | None:
    """Returns a list that has, for each class of the task, the index of this class in `labels`. `labels` are
    the names of the model's classes, which may be spelled in another way than the task's names (see
    `class_of`). Returns None if model and task have different classes.
    """
    classes = [class_of(label, task) for label in labels]
    if None in classes or sorted(classes) != list(range(len(task.labels))):
        return None
    return [classes.index(k) for k in range(len(task.labels))]


@torch.no_grad()
def teacher_outputs(teacher: nn.Module, examples: Examples, runtime: Runtime, layers: list[int],
                    micro_tokens: int = MICRO_TOKENS,
                    progress: Callable[[int], None] | None = None) -> dict[str, np.ndarray]:
    """Returns a dict with the teacher's outputs on n examples. The entry `logits` has the shape (n, K) for K
    classes, and (n, 1) for scores. With a span head, `logits` has the shape (N, 2), with a row for each of
    the N tokens of all examples.

    `layers` is a list of teacher layers, counted from 1. If the list is not empty, the dict also has the
    entry `cls`: the [CLS] states after these layers, with the shape (n, len(layers), hidden size).
    """
    if not layers:
        return {"logits": outputs(teacher, examples, runtime, micro_tokens, progress)}
    teacher.eval()
    n = len(examples.lengths)
    cls = np.empty((n, len(layers), teacher.config.hidden_size), np.float32)
    logits = None
    for group in groups(examples.lengths, micro_tokens):
        batch = examples.batch(group).to(runtime.device)
        with runtime.autocast():
            hiddens = teacher.encoder.trace(batch).hiddens
            out = teacher.classify(hiddens[-1], batch).float().cpu().numpy()
            # (sequences of the batch, len(layers), hidden size)
            states = torch.stack([hiddens[i][batch.first_tokens] for i in layers], 1)
        logits = np.empty((n, out.shape[1]), np.float32) if logits is None else logits
        logits[group], cls[group] = out, states.float().cpu().numpy()
        if progress:
            progress(len(batch.ids))
    return {"logits": logits, "cls": cls}


def check_widths(student: Config, teacher: Config) -> None:
    """Raises `UserError` if student and teacher have different hidden sizes."""
    if student.hidden_size != teacher.hidden_size:
        raise UserError("--method pkd and --no-project need equal hidden sizes, but the student has "
                        f"{student.hidden_size} and the teacher {teacher.hidden_size}")
