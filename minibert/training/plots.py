"""Draws the figures of a run, if matplotlib is installed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from minibert.common.disk import disk_errors
from minibert.common.runtime import Runtime
from minibert.data.tokenizer import Tokenizer
from minibert.model.batch import pack
from minibert.model.heads import encoder_of
from minibert.training.run_folder import rows_up_to, terms_of_row


def plot_curves(metrics: Path, target: Path) -> bool:
    """Draws the curve of each loss term in metrics.jsonl. The horizontal axis is the number of tokens.
    Returns False if there are no rows or if matplotlib is not installed.
    """
    plt, rows = pyplot(), rows_up_to(metrics)
    terms = list(dict.fromkeys(term for row in rows for term in terms_of_row(row)))
    if plt is None or not terms:
        return False
    figure, axes = plt.subplots(1, len(terms), figsize=(4 * len(terms), 3), squeeze=False)
    for axis, term in zip(axes[0], terms):
        axis.plot(*zip(*((row["tokens"] / 1e6, row[term]) for row in rows if term in row)),
                  linewidth=0.6, label="training")
        held_out = [(row["tokens"] / 1e6, row["held_out"][term]) for row in rows
                    if term in row.get("held_out", {})]
        if held_out and term != "kl":  # the held-out KL has the temperature 1, unlike that in training
            axis.plot(*zip(*held_out), marker="o", markersize=3, label="held out")
        axis.set(title=term, xlabel="million tokens")
    axes[0][-1].legend()
    save_figure(figure, target)
    return True


def plot_held_out(curves: dict[str, list[tuple[int, dict]]], target: Path) -> bool:
    """Draws the held-out perplexity and accuracy of several runs into one figure. A run is a list of (tokens,
    scores). Returns False if matplotlib is not installed.
    """
    plt = pyplot()
    if plt is None:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5))
    for axis, term in zip(axes, ("perplexity", "accuracy")):
        for name, points in curves.items():
            known = [(tokens / 1e6, scores[term]) for tokens, scores in points if term in scores]
            if known:  # TinyBERT and MiniLM have no perplexity and no accuracy
                axis.plot(*zip(*known), marker="o", markersize=3, linewidth=len(known) > 2, label=name)
        axis.set(title=f"{term}, held out", xlabel="million tokens",
                 yscale="log" if term == "perplexity" else "linear")
    axes[1].legend(fontsize=8)
    save_figure(figure, target)
    return True


class Point(NamedTuple):
    """One model in the plot of quality and speed."""

    speed: float  # the speed divided by the teacher's speed
    quality: float
    low: float  # lower end of the interval of the quality
    high: float
    parameters: float  # number of parameters in millions


def plot_quality(points: dict[str, Point], quality: str, target: Path) -> bool:
    """Draws the speed and the quality of several models, with their names and intervals. The frontier is a
    line through the models that are not both slower and worse than another model. Returns False if matplotlib
    is not installed.
    """
    plt = pyplot()
    if plt is None:
        return False
    figure, axis = plt.subplots(figsize=(9, 5))
    best = frontier(points)
    axis.plot([points[name].speed for name in best], [points[name].quality for name in best], color="0.6",
              linestyle="--", label="frontier: no other model is both faster and better", zorder=1)
    for name, point in points.items():
        below, above = point.quality - point.low, point.high - point.quality
        axis.errorbar(point.speed, point.quality, [[below], [above]], fmt="o", capsize=3, elinewidth=1,
                      color="tab:blue" if name in best else "tab:orange")
    axis.set(xlabel="speed of the encoder, times the teacher's", ylabel=quality)
    axis.margins(x=0.08, y=0.1)
    left, right = axis.get_xlim()
    axis.set_xlim(left, right + 0.35 * (right - left))  # space for the names on the right
    axis.legend(fontsize=8, loc="lower left", frameon=False)
    figure.tight_layout()
    place_names(axis, {f"{name}, {point.parameters:.1f} M": (point.speed, point.quality)
                       for name, point in points.items()})
    save_figure(figure, target)
    return True


def frontier(points: dict[str, Point]) -> list[str]:
    """The models on the frontier, from slow to fast. A model is on the frontier if no other model is at least
    as good in speed and in quality, and better in one of the two.
    """
    def beats(other: Point, point: Point) -> bool:
        return other.speed >= point.speed and other.quality >= point.quality and other[:2] != point[:2]

    kept = [name for name in points if not any(beats(other, points[name]) for other in points.values())]
    return sorted(kept, key=lambda name: points[name].speed)


def place_names(axis, places: dict[str, tuple[float, float]], size: int = 8) -> None:
    """Writes a name to the right of each point. If two names would overlap, one name is moved up and gets a
    line to its point. The axis must have its final size and limits.
    """
    gap = 1.5 * size * axis.figure.dpi / 72  # the distance of two lines of text in pixels
    pixels = {name: axis.transData.transform(place) for name, place in places.items()}
    columns: list[list[str]] = []  # names of points that are near each other, from left to right
    for name in sorted(places, key=lambda name: pixels[name][0]):
        if columns and pixels[name][0] - pixels[columns[-1][-1]][0] < 150:
            columns[-1].append(name)
        else:
            columns.append([name])
    for column in columns:
        right, free = pixels[column[-1]][0] + 20, float("-inf")
        for name in sorted(column, key=lambda name: pixels[name][1]):
            free = max(pixels[name][1], free + gap)
            axis.annotate(name, places[name], axis.transData.inverted().transform((right, free)), va="center",
                          fontsize=size, arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.6})


@torch.no_grad()
def plot_attention(teacher: nn.Module, students: dict[str, nn.Module], layers: Sequence[int],
                   tokenizer: Tokenizer, sentence: str, runtime: Runtime, target: Path) -> bool:
    """Draws the attention probabilities of one sentence, averaged over the heads. The teacher and each
    student have one row of pictures. Each column is one of at most four student layers. `layers` has, for
    each student layer, the teacher layer (from 1) in the same column. Returns False if matplotlib is not
    installed or the sentence is too long.
    """
    plt = pyplot()
    ids, segments = tokenizer.encode([sentence])
    models = {"teacher": teacher} | students
    if plt is None or len(ids[0]) > min(encoder_of(model).config.max_positions for model in models.values()):
        return False
    pieces = [tokenizer.id_to_piece(i) for i in ids[0]]
    shown = sorted({round(i * (len(layers) - 1) / 3) for i in range(4)})  # drawn layers, from 0
    maps = {}
    for name, model in models.items():
        with runtime.autocast():
            trace = encoder_of(model).trace(pack(ids, segments).to(runtime.device))
        for column, m in enumerate(shown):
            layer = layers[m] - 1 if name == "teacher" else m
            q, k = (x[layer].float() for x in (trace.queries, trace.keys))  # (T, H, E)
            scores = torch.einsum("ihe,jhe->hij", q, k) / math.sqrt(q.shape[-1])
            maps[name, column] = layer + 1, scores.softmax(-1).mean(0).cpu()  # (T, T)
    figure, axes = plt.subplots(len(models), len(shown), squeeze=False, layout="constrained",
                                figsize=(1.2 + 2.6 * len(shown), 0.8 + 2.4 * len(models)))
    for row, name in enumerate(models):
        for column in range(len(shown)):
            axis, (layer, attention) = axes[row][column], maps[name, column]
            largest = max(float(maps[other, column][1].max()) for other in models)
            axis.imshow(attention.numpy(), cmap="viridis", vmin=0, vmax=largest)
            axis.set_title(f"{name}: layer {layer}", fontsize=9)
            axis.set_xticks(range(len(pieces)), pieces if row == len(models) - 1 else [], rotation=90, size=7)
            axis.set_yticks(range(len(pieces)), pieces if column == 0 else [], size=7)
    figure.suptitle("attention of each row's token to each column's token, mean over heads", size=9)
    save_figure(figure, target)
    return True


def pyplot():
    """The module matplotlib.pyplot, set up to draw without a screen. Returns None if matplotlib is not
    installed.
    """
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot
    return matplotlib.pyplot


def save_figure(figure, target: Path) -> None:
    """Writes a figure and frees its memory."""
    import matplotlib.pyplot as plt
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    with disk_errors(target):
        figure.savefig(target, dpi=110)
    plt.close(figure)
