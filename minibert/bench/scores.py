"""The share of the teacher's score that a student keeps, with intervals over seeds, and mean scores.

Papers use one of two formulas and often do not say which one. Here s_i is the student's score on task i, and
t_i is the teacher's score. Both scores are medians over seeds.

    ratio of means:  mean_i s_i / mean_i t_i        DistilBERT's 97 %; tasks with large scores weigh more
    mean of ratios:  mean_i (s_i / t_i)             all tasks have the same weight
"""

import numpy as np

DRAWS = 10_000  # the bootstrap draws this number of samples


# s and t (tasks, ...) are the scores of student and teacher; each formula averages over the tasks
FORMULAS = {"ratio of means": lambda s, t: s.mean(0) / t.mean(0),
            "mean of ratios": lambda s, t: (s / t).mean(0)}


def share_kept(formula: str, student: list[list[float]],
               teacher: list[list[float]]) -> tuple[float, float, float] | None:
    """The share by one of `FORMULAS`, and its 2.5 % and 97.5 % quantiles over seeds of fine-tuning.

    `student` and `teacher` have one list for each task, with one score for each seed. The quantiles come from
    a bootstrap, which draws the seeds of each task and model with replacement. A task with one seed does not
    make the interval wider. The interval does not show how much the scores would change if the training of
    the student were repeated. The result is None if a score of the teacher is not above 0.
    """
    rng = np.random.default_rng(0)
    if min(map(min, teacher)) <= 0:
        return None
    of = FORMULAS[formula]
    medians = [np.array([np.median(seeds) for seeds in tasks]) for tasks in (student, teacher)]
    low, high = np.quantile(of(drawn(student, rng), drawn(teacher, rng)), (0.025, 0.975))
    return float(of(*medians)), float(low), float(high)


def mean_score(tasks: list[list[float]]) -> float:
    """The mean score over the tasks. The score of a task is the median over its seeds."""
    return float(np.mean([np.median(seeds) for seeds in tasks]))


def drawn(tasks: list[list[float]], rng: np.random.Generator) -> np.ndarray:
    """Draws `DRAWS` samples of the seeds of each task with replacement. Returns the medians (tasks, DRAWS).
    """
    return np.array([np.median(rng.choice(seeds, (DRAWS, len(seeds))), 1) for seeds in tasks])
