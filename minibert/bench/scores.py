"""Computes mean scores over tasks, and the share of the teacher's score that a student keeps.

Papers compute the share with one of two formulas. s_i is the student's score on task i, and t_i the teacher's
score. Each score is the median over seeds.

    ratio of means:  mean_i s_i / mean_i t_i        tasks with large scores have more weight
    mean of ratios:  mean_i (s_i / t_i)             all tasks have the same weight

The share of 97 % in the DistilBERT paper is a ratio of means.
"""

import numpy as np

DRAWS = 10_000  # number of bootstrap samples


# `s` has the student's scores, and `t` the teacher's scores. Both arrays have one row for each task: (number
# of tasks,), or (number of tasks, DRAWS) for bootstrap samples.
FORMULAS = {"ratio of means": lambda s, t: s.mean(0) / t.mean(0),
            "mean of ratios": lambda s, t: (s / t).mean(0)}


def share_kept(formula: str, student: list[list[float]],
               teacher: list[list[float]]) -> tuple[float, float, float] | None:
    """Returns a tuple (share, low, high): the share of the teacher's score that the student keeps, and the
    ends of its 95 % bootstrap interval. Returns None if a score of the teacher is 0 or less.

    `formula` is a key of `FORMULAS`. `student` and `teacher` have one list for each task, with one score for
    each seed of fine-tuning. For each bootstrap sample, scores are drawn with replacement from each list.
    With one seed, all samples of a task are equal, so the interval is too narrow.
    """
    rng = np.random.default_rng(0)
    if min(map(min, teacher)) <= 0:
        return None
    of = FORMULAS[formula]
    medians = [np.array([np.median(seeds) for seeds in tasks]) for tasks in (student, teacher)]
    low, high = np.quantile(of(drawn(student, rng), drawn(teacher, rng)), (0.025, 0.975))
    return float(of(*medians)), float(low), float(high)


def mean_score(tasks: list[list[float]]) -> float:
    """Returns the mean score over the tasks. The score of a task is the median over its seeds."""
    return float(np.mean([np.median(seeds) for seeds in tasks]))


def drawn(tasks: list[list[float]], rng: np.random.Generator) -> np.ndarray:
    """Makes `DRAWS` bootstrap samples of each task's scores. Returns the medians of the samples, as an
    array (number of tasks, DRAWS).
    """
    return np.array([np.median(rng.choice(seeds, (DRAWS, len(seeds))), 1) for seeds in tasks])
