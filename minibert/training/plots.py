"""Draws the figures of a run, if matplotlib is installed."""

from pathlib import Path

from minibert.common.disk import disk_errors
from minibert.training.run_folder import rows_up_to, terms_of_row


def plot_curves(metrics: Path, target: Path) -> bool:
    """Draws each loss term (and accuracy) in metrics.jsonl over the number of tokens. Returns False, without
    a figure, if there are no rows or if matplotlib is not installed.
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
        if held_out:
            axis.plot(*zip(*held_out), marker="o", markersize=3, label="held out")
        axis.set(title=term, xlabel="million tokens")
    axes[0][-1].legend()
    save_figure(figure, target)
    return True


def plot_held_out(curves: dict[str, list[tuple[int, dict]]], target: Path) -> bool:
    """Draws the held-out perplexity and accuracy of several runs into one figure. `curves` maps the name of
    each run to a list of pairs: the number of tokens so far, and a dict of held-out scores. Returns False if
    matplotlib is not installed.
    """
    plt = pyplot()
    if plt is None:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5))
    for axis, term in zip(axes, ("perplexity", "accuracy")):
        for name, points in curves.items():
            known = [(tokens / 1e6, scores[term]) for tokens, scores in points if term in scores]
            if known:  # without an MLM head, a run has no perplexity and no accuracy
                axis.plot(*zip(*known), marker="o", markersize=3, linewidth=len(known) > 2, label=name)
        axis.set(title=f"{term}, held out", xlabel="million tokens",
                 yscale="log" if term == "perplexity" else "linear")
    axes[1].legend(fontsize=8)
    save_figure(figure, target)
    return True


def pyplot():
    """Returns matplotlib.pyplot, set up to draw without a screen, or None if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot
    return matplotlib.pyplot


def save_figure(figure, target: Path) -> None:
    """Writes a figure to the file `target`, and frees the figure's memory."""
    import matplotlib.pyplot as plt
    figure.tight_layout()
    with disk_errors(target):
        figure.savefig(target, dpi=110)
    plt.close(figure)
