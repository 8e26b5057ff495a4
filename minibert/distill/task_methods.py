"""The table `TASK_METHODS` lists all methods of fine-tuning with a teacher. The losses are in task_kd.py
(kd and pkd), tinybert.py and theseus.py.
"""

from typing import NamedTuple


class TaskMethod(NamedTuple):
    """The requirements and the default options of one method."""

    learns: str  # what the student learns, as a text for the help
    needs_teacher: bool  # false: the method also works with the labels alone
    spans: bool  # true: the method also works for SQuAD, whose answers are spans of the text
    cut: bool  # true: the student's layers must be copied from the teacher at the start
    defaults: dict  # default values of options of finetune.py in a run with --teacher


TASK_METHODS = {
    "kd": TaskMethod("the teacher's outputs", False, True, False, dict(alpha=0.5, temperature=2.0)),
    "pkd": TaskMethod(
        "the teacher's outputs, and the [CLS] states of some teacher layers", True, False, False,
        dict(alpha=0.5, temperature=2.0, beta=100.0, teacher_layers="skip")),
    "tinybert": TaskMethod(
        "first the teacher's embeddings, hidden states and attention, then its outputs", True, True, False,
        dict(alpha=1.0, temperature=1.0, intermediate_lr=5e-5)),
    # `replace_rate` and `replace_until` are from the MRPC command in the README of the original code. In that
    # command, the probability of a replacement becomes 1 after 1,167 of 1,725 steps (68 %).
    "theseus": TaskMethod(
        "the labels, while student layers replace random groups of layers in the teacher",
        True, True, True,
        dict(alpha=0.0, temperature=2.0, replace_rate=0.3, replace_until=0.68)),
}
