"""The models of a fine-tuning: what starts with the task's head, and the teacher, asked once before training.

`options` are those of finetune.py.
"""

import warnings

import numpy as np
import torch
from torch import nn

import minibert
from minibert.common.console import Progress, say
from minibert.common.errors import UserError
from minibert.common.options import dropouts
from minibert.common.runtime import Runtime
from minibert.data.examples import check_examples
from minibert.data.tokenizer import Tokenizer
from minibert.distill.task_kd import align_labels, patience_layers, teacher_outputs
from minibert.hub.load_save import check_pieces, load_config
from minibert.model.heads import Classifier, Span
from minibert.tasks.specs import Task
from minibert.tasks.splits import Split, dev_of, judge, tokenised


def load_model(name: str, task: Task, options, seed: int) -> nn.Module:
    """The model with the task's head:
    kept where the checkpoint has it with the same labels in the same order, or a score as well,
    else new from `seed`.
    """
    torch.manual_seed(seed)
    changed = dropouts(options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a head is new is what fine-tuning is about
        if task.name == "squad":
            return minibert.load(name, "span", **changed)
        config = load_config(name)
        fits = config.regression == task.regression and (task.regression or config.labels == task.labels)
        if fits and isinstance(minibert.load(name), Classifier):
            stated = {"problem_type": "regression"} if task.regression else {}
            return minibert.load(name, "classification", **stated, **changed)
        return minibert.load(name, "classification", labels=task.labels or ("score",),
                             problem_type="regression" if task.regression else None, **changed)


def load_tuned(name: str, task: Task) -> tuple[nn.Module, list[int]]:
    """A model that was fine-tuned for the task, as it is,
    and for each label of the task its class number there.
    """
    model = minibert.load(name)
    if not isinstance(model, Span if task.name == "squad" else Classifier):
        raise UserError(f"{name} has no head for {task.name}: fine-tune it first")
    if task.name == "squad":
        return model, [0, 1]
    if model.config.regression != task.regression:
        raise UserError(f"{name} predicts {'scores' if model.config.regression else 'classes'}, "
                        f"{task.name} has {'scores' if task.regression else 'classes'}")
    return model, [0] if task.regression else align_labels(model.config.labels, task, name)


def ask_teacher(options, task: Task, train: Split, tokenizer: Tokenizer, teacher: nn.Module, order: list[int],
                runtime: Runtime) -> tuple[dict[str, np.ndarray], list[int]]:
    """The teacher's outputs on the training examples, by name, in the task's order of classes;
    and PKD's student layers.

    `teacher` and `order` are as `load_tuned` gives them, the teacher frozen.
    """
    student, theirs = load_config(options.model), minibert.load_tokenizer(options.teacher)
    examples = train.examples
    check_pieces(theirs, teacher.config, options.teacher)
    if theirs.sha256 != tokenizer.sha256:
        if task.name == "squad" or options.transfer or options.method == "tinybert":
            raise UserError(f"teacher {options.teacher} and model {options.model} "
                            "have different vocabularies")
        examples = tokenised(task, train.rows, theirs, options.stride).examples
    check_examples(examples, teacher.config, f"--teacher {options.teacher}")
    pairs = []
    if options.method == "pkd":
        pairs = patience_layers(student.layers, teacher.config.layers, options.patience)
        if student.hidden_size != teacher.config.hidden_size:
            raise UserError("--method pkd compares states of equal width: "
                            f"{student.hidden_size} against {teacher.config.hidden_size}; "
                            "--method kd does not")
        say("[CLS] states, student layer from teacher layer:", ", ".join(f"{s} from {t}" for s, t in pairs))
    say(f"asking the teacher about {len(examples.lengths):,} examples")
    said = teacher_outputs(teacher, examples, runtime, [t for _, t in pairs], options.micro_tokens,
                           Progress("asking the teacher", int(examples.lengths.sum()), "tokens"))
    said["logits"] = said["logits"][:, order]
    return said, [s for s, _ in pairs]


def judge_teacher(options, task: Task, splits: dict[str, Split], teacher: nn.Module, order: list[int],
                  runtime: Runtime) -> dict[str, dict[str, float]]:
    """The teacher's scores on each dev split, read with its own tokenizer."""
    theirs = minibert.load_tokenizer(options.teacher)
    scores = {}
    for name, split in dev_of(task, splits).items():
        seen = tokenised(task, split.rows, theirs, options.stride)
        check_examples(seen.examples, teacher.config, f"--teacher {options.teacher}")
        scores[name] = judge(teacher, task, seen, runtime, options.micro_tokens, order)[0]
    return scores
