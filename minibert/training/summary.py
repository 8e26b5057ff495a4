"""The output of train.py at the end of a run: a table that compares teacher and student, and sentences in
which the models fill in the masks.
"""

import statistics
import time
from collections.abc import Iterable

import torch
from torch import nn

from minibert.common.runtime import Runtime
from minibert.data.tokenizer import Tokenizer
from minibert.inference.predict import fill_masks
from minibert.model.batch import Step
from minibert.model.heads import encoder_of

SENTENCES = ("The function returns a [MASK] of strings.", "If the file does not [MASK], an error is raised.",
             "The city is the [MASK] of the country.")


@torch.no_grad()
def tokens_per_second(models: dict[str, nn.Module], held_out: Step, runtime: Runtime,
                      rounds: int = 5) -> dict[str, float]:
    """The speed of each encoder in tokens per second. In each round every model runs once. The result is the
    median over the rounds.
    """
    batch = held_out.micro_batches[0].to(runtime.device).batch
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(rounds + 1):
        for name, model in models.items():
            model.eval()
            begun = time.perf_counter()
            with runtime.autocast():
                encoder_of(model)(batch)
            if runtime.device.type == "cuda":
                torch.cuda.synchronize(runtime.device)
            if round_number:  # the first round is not measured, because first passes are slow
                seconds[name].append(time.perf_counter() - begun)
    return {name: len(batch.ids) / statistics.median(times) for name, times in seconds.items()}


def figures_of(scores: Iterable[dict]) -> dict[str, tuple[str, str]]:
    """The held-out figures that the table shows: for each name of a figure, the heading and the format.
    `scores` are dictionaries from the names of figures to their values.
    """
    names = dict.fromkeys(name for score in scores for name in score)  # each name once, in order
    shown = [name for name in names if name not in ("mlm", "loss", "masked_tokens", "attention_kl")]
    special = {"perplexity": ("perplexity", "{:.1f}"), "accuracy": ("accuracy", "{:.1%}"),
               "kl": ("KL to teacher", "{:.3f}"), "attention_kl": ("KL of attention", "{:.3f}")}
    return {name: special.get(name, (name.replace("_", " "), "{:.3f}"))
            for name in (*shown, *(name for name in names if name == "attention_kl"))}


def comparison(models: dict[str, nn.Module], scores: dict[str, dict], speeds: dict[str, float]) -> list[dict]:
    """The rows of the table. Each row has a model's number of parameters (tied weights are counted once), its
    size in fp32, its speed, and its held-out figures.
    """
    rows = []
    for name, model in models.items():
        parameters = sum(p.numel() for p in model.parameters())
        row = {"model": name, "layers": len(encoder_of(model).layers),
               "parameters": f"{parameters / 1e6:.2f}M", "fp32 MB": f"{parameters * 4 / 1e6:.1f}",
               "encoder tok/s": f"{speeds[name]:,.0f}"}
        for figure, (heading, form) in figures_of(scores.values()).items():
            value = scores[name].get(figure)
            row[heading] = "-" if value is None else form.format(value)
        rows.append(row)
    return rows


def filled_sentences(models: dict[str, nn.Module | None], tokenizer: Tokenizer, runtime: Runtime
                     ) -> list[str]:
    """Lines with the tokens that each model predicts at the masks of some sentences. The list is empty if a
    model has too few positions.
    """
    lines, models = [], {name: model for name, model in models.items() if model is not None}
    positions = min(model.config.max_positions for model in models.values())
    for sentence in (s.replace("[MASK]", tokenizer.names[4]) for s in SENTENCES):
        if len(tokenizer.encode([sentence])[0][0]) > positions:
            continue
        lines += ["", sentence]
        for name, model in models.items():
            pieces = fill_masks(model, tokenizer, sentence, runtime=runtime)[0]
            lines.append(f"  {name:18} {', '.join(piece for piece, _ in pieces)}")
    return lines
