"""The table of all methods that learn a task from a teacher: what each learns, and what it sets by default.

kd and pkd are in task_kd.py, tinybert in tinybert.py, theseus in theseus.py. The labels, and the teacher's
outputs, have the same loss in all of them.
"""

from typing import NamedTuple


class TaskMethod(NamedTuple):
    """What is to be known about a method."""

    learns: str  # what is learned from the teacher, in words
    needs_teacher: bool  # what is left without a teacher is kd's
    spans: bool  # whether it can learn SQuAD
    cut: bool  # whether the student must start as layers of its teacher
    defaults: dict  # of the options of finetune.py, where there is a teacher


TASK_METHODS = {
    "kd": TaskMethod("the teacher's outputs", False, True, False, dict(alpha=0.5, temperature=2.0)),
    "pkd": TaskMethod(
        "also the teacher's [CLS] states", True, False, False,
        dict(alpha=0.5, temperature=2.0, beta=100.0, teacher_layers="skip")),
    "tinybert": TaskMethod(
        "first the teacher's embeddings, hidden states and attention, then its outputs", True, True, False,
        dict(alpha=1.0, temperature=1.0, intermediate_lr=5e-5, project=True)),
    # the command of the original code for MRPC: p is 1 after 1,167 of 1,725 steps
    "theseus": TaskMethod(
        "the labels, while student layers replace random layers of the teacher", True, True, True,
        dict(alpha=0.0, temperature=2.0, replace_rate=0.3, replace_until=0.68)),
}
