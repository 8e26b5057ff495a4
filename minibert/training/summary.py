"""What a run shows people: the line of each step, the figures of the closing table, filled masks, a plot."""

import statistics
import time
from pathlib import Path

import torch
from torch import nn

from minibert.common import console
from minibert.common.disk import disk_errors
from minibert.common.runtime import Runtime
from minibert.data.loader import Step
from minibert.data.tokenizer import Tokenizer
from minibert.model.batch import pack
from minibert.model.heads import encoder_of
from minibert.training.run_folder import rows_up_to

SENTENCES = ("The function returns a [MASK] of strings.", "If the file does not [MASK], an error is raised.",
             "The city is the [MASK] of the country.")


# of the loss, as methods.py, inner_methods.py and finetuning.py name them
INNER = ("embedding", "hidden", "attention", "attention_relation", "value_relation",
         "q_relation", "k_relation", "v_relation")
TERMS = ("kl", "mlm", "cosine", "feature_map", "mean", "variance", "kd", *INNER, "hard", "soft", "patience")


class Progress:
    """The line of a training loop that begins after `done` of `steps` steps."""

    def __init__(self, steps: int, done: int):
        self.line = console.Progress("training", steps, "steps", done, stays=True)

    def __call__(self, step: int, row: dict) -> None:
        """Shows the row of metrics of the step that was just done."""
        terms = " ".join(f"{name} {row[name]:.3f}" for name in TERMS if name in row)
        self.line(1, f"loss {row['loss']:.3f} ({terms})  lr {row['lr']:.1e}  |g| {row['grad_norm']:.2f}  "
                     f"{row['tokens_per_second']:,.0f} tok/s")


@torch.no_grad()
def tokens_per_second(models: dict[str, nn.Module], held_out: Step, runtime: Runtime,
                      rounds: int = 5) -> dict[str, float]:
    """Tokens per second through each encoder: medians over rounds in which the models take turns."""
    some = [micro.to(runtime.device).batch for micro in held_out.micro_batches[:1]]
    tokens = sum(len(batch.ids) for batch in some)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(rounds + 1):
        for name, model in models.items():
            model.eval()
            begun = time.perf_counter()
            with runtime.autocast():
                for batch in some:
                    encoder_of(model)(batch)
            if runtime.device.type == "cuda":
                torch.cuda.synchronize(runtime.device)
            if round_number:  # the first round warms up
                seconds[name].append(time.perf_counter() - begun)
    return {name: tokens / statistics.median(times) for name, times in seconds.items()}


# Held-out figures: their headings and forms in the closing table, in its order.
FIGURES = {"perplexity": ("perplexity", "{:.1f}"), "accuracy": ("accuracy", "{:.1%}"),
           "kl": ("KL to teacher", "{:.3f}"), **{term: (term.replace("_", " "), "{:.3f}") for term in INNER},
           "attention_kl": ("KL of attention", "{:.3f}")}


def comparison(models: dict[str, nn.Module], scores: dict[str, dict], speeds: dict[str, float]) -> list[dict]:
    """One row a model: parameters (tied table once), size in fp32, speed, and its held-out figures."""
    figures = {name: None for score in scores.values() for name in score if name in FIGURES}  # in order
    rows = []
    for name, model in models.items():
        parameters = sum(p.numel() for p in model.parameters())
        rows.append({"model": name, "layers": len(encoder_of(model).layers),
                     "parameters": f"{parameters / 1e6:.2f}M", "fp32 MB": f"{parameters * 4 / 1e6:.1f}",
                     "encoder tok/s": f"{speeds[name]:,.0f}",
                     **{FIGURES[figure][0]: FIGURES[figure][1].format(scores[name][figure])
                        if scores[name].get(figure) is not None else "-" for figure in figures}})
    return rows


@torch.no_grad()
def fill_masks(model: nn.Module, tokenizer: Tokenizer, sentence: str, runtime: Runtime,
               best: int = 5) -> list[str]:
    """The likeliest pieces at the first [MASK] of a sentence, best first."""
    ids, segments = tokenizer.encode([sentence])
    model.eval()
    with runtime.autocast():
        logits = model(pack(ids, segments).to(runtime.device))  # (N, V)
    at = ids[0].index(tokenizer.mask_id)
    return [tokenizer.id_to_piece(i) for i in logits[at, :tokenizer.vocab_size].topk(best).indices.tolist()]


def filled_sentences(models: dict[str, nn.Module | None], tokenizer: Tokenizer, runtime: Runtime
                     ) -> list[str]:
    """Lines that show what each model puts at the mask of some sentences, if all have the positions."""
    lines, models = [], {name: model for name, model in models.items() if model is not None}
    positions = min(model.config.max_positions for model in models.values())
    for sentence in (s.replace("[MASK]", tokenizer.names[4]) for s in SENTENCES):
        if len(tokenizer.encode([sentence])[0][0]) > positions:
            continue
        lines += ["", sentence]
        for name, model in models.items():
            lines.append(f"  {name:18} {', '.join(fill_masks(model, tokenizer, sentence, runtime))}")
    return lines


def plot_curves(metrics: Path, target: Path) -> bool:
    """Draws each term of metrics.jsonl over tokens seen; False where there are no rows or no matplotlib."""
    plt, rows = pyplot(), rows_up_to(metrics)
    terms = [t for t in (*TERMS, "accuracy") if any(t in row for row in rows)]
    if plt is None or not terms:
        return False
    figure, axes = plt.subplots(1, len(terms), figsize=(4 * len(terms), 3), squeeze=False)
    for axis, term in zip(axes[0], terms):
        axis.plot(*zip(*((row["tokens"] / 1e6, row[term]) for row in rows if term in row)),
                  linewidth=0.6, label="training")
        held_out = [(row["tokens"] / 1e6, row["held_out"][term]) for row in rows
                    if term in row.get("held_out", {})]
        if held_out and term != "kl":  # the held-out KL is at temperature 1
            axis.plot(*zip(*held_out), marker="o", markersize=3, label="held out")
        axis.set(title=term, xlabel="million tokens")
    axes[0][-1].legend()
    save_figure(figure, target)
    return True


def plot_held_out(curves: dict[str, list[tuple[int, dict]]], target: Path) -> bool:
    """Draws the held-out perplexity and accuracy of several runs, (tokens, scores) each, into one figure;
    False where matplotlib is not installed.
    """
    plt = pyplot()
    if plt is None:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5))
    for axis, term in zip(axes, ("perplexity", "accuracy")):
        for name, points in curves.items():
            known = [(tokens / 1e6, scores[term]) for tokens, scores in points if term in scores]
            if known:  # TinyBERT and MiniLM have no such figures
                axis.plot(*zip(*known), marker="o", markersize=3, linewidth=len(known) > 2, label=name)
        axis.set(title=f"{term}, held out", xlabel="million tokens",
                 yscale="log" if term == "perplexity" else "linear")
    axes[1].legend(fontsize=8)
    save_figure(figure, target)
    return True


def plot_quality(points: dict[str, tuple[float, float, float]], quality: str, target: Path) -> bool:
    """Draws models by (million parameters, speed in times the teacher's, quality);
    False where matplotlib is not installed.
    """
    plt = pyplot()
    if plt is None:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    for column, label in enumerate(("million parameters", "speed, times the teacher's")):
        for name, point in points.items():
            axes[column].plot(point[column], point[2], marker="o", label=name)
        axes[column].set(xlabel=label)
        axes[column].margins(0.2)
    axes[0].set(ylabel=quality if len(quality) < 45 else quality.split(" over ")[0])
    axes[1].legend(fontsize=8)
    save_figure(figure, target)
    return True


def pyplot():
    """matplotlib's drawing functions, without a screen; None where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot
    return matplotlib.pyplot


def save_figure(figure, target: Path) -> None:
    """Writes a figure, and forgets it."""
    import matplotlib.pyplot as plt
    figure.tight_layout()
    with disk_errors(target):
        figure.savefig(target, dpi=110)
    plt.close(figure)
