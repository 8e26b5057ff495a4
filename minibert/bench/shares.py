"""The share of the teacher's score that a student keeps, by the two formulas of the papers, with an interval.

With s_i and t_i the scores of student and teacher on task i, each the median over seeds:

    ratio of means:  mean_i s_i / mean_i t_i        DistilBERT's 97 %; tasks with large scores have more
    weight mean of ratios:  mean_i (s_i / t_i)             all tasks have the same weight
"""

import numpy as np

DRAWS = 10_000


def ratio_of_means(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Both (tasks, ...) -> (...)."""
    return student.mean(0) / teacher.mean(0)


def mean_of_ratios(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Both (tasks, ...) -> (...)."""
    return (student / teacher).mean(0)


FORMULAS = {"ratio of means": ratio_of_means, "mean of ratios": mean_of_ratios}


def share_kept(formula: str, student: list[list[float]],
               teacher: list[list[float]]) -> tuple[float, float, float] | None:
    """The share by one of `FORMULAS`, and its 2.5 and 97.5 % quantiles over seeds.

    Each argument holds one list a task, with one score a seed. The interval is a bootstrap: it draws the
    seeds of each task and model with replacement. A task with one seed adds nothing to the interval. The
    spread between trainings of the student is not in it. Returns None if a score of the teacher is not above
    0.
    """
    rng = np.random.default_rng(0)
    if min(map(min, teacher)) <= 0:
        return None
    of = FORMULAS[formula]
    medians = [np.array([np.median(seeds) for seeds in tasks]) for tasks in (student, teacher)]
    low, high = np.quantile(of(drawn(student, rng), drawn(teacher, rng)), (0.025, 0.975))
    return float(of(*medians)), float(low), float(high)


def mean_score(tasks: list[list[float]]) -> tuple[float, float, float]:
    """The mean over tasks of the median over seeds, and its 2.5 and 97.5 % quantiles by such a bootstrap."""
    low, high = np.quantile(drawn(tasks, np.random.default_rng(0)).mean(0), (0.025, 0.975))
    return float(np.mean([np.median(seeds) for seeds in tasks])), float(low), float(high)


def drawn(tasks: list[list[float]], rng: np.random.Generator) -> np.ndarray:
    """(tasks, DRAWS): the median of each task's seeds, which are drawn anew with replacement."""
    return np.array([np.median(rng.choice(seeds, (DRAWS, len(seeds))), 1) for seeds in tasks])
