"""Makes the output at the end of a run: a table that compares teacher and student, and sentences in which
each model predicts the [MASK].
"""

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from minibert.common.runtime import Runtime
from minibert.data.tokenizer import Tokenizer
from minibert.inference.predict import fill_masks
from minibert.model.batch import Step
from minibert.model.heads import encoder_of

SENTENCES = ("The function returns a [MASK] of strings.", "If the file does not [MASK], an error is raised.",
             "The city is the [MASK] of the country.")


def seconds_in_turns(functions: dict[str, Callable], turns: int = 5) -> dict[str, float]:
    """Returns a dict from the name of each function to its median time in seconds. Each of `turns` rounds
    calls every function once. An additional first round is not timed, because first calls are slow.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(turns + 1):
        for name, function in functions.items():
            begun = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(times) for name, times in seconds.items()}


@torch.no_grad()
def tokens_per_second(models: dict[str, nn.Module], held_out: Step, runtime: Runtime) -> dict[str, float]:
    """Returns a dict from the name of each model to the speed of its encoder on one batch, in tokens per
    second. Leaves the models in eval mode.
    """
    batch = held_out.micro_batches[0].to(runtime.device).batch

    def run(model: nn.Module) -> None:
        with runtime.autocast():
            encoder_of(model)(batch)

    seconds = seconds_in_turns({name: partial(run, model.eval()) for name, model in models.items()})
    return {name: len(batch.ids) / taken for name, taken in seconds.items()}


def figures_of(scores: Iterable[dict]) -> dict[str, tuple[str, str]]:
    """Returns a dict with the held-out figures that the table shows. The key is the name of a figure. The
    value is a pair: the heading in the table, and the number format.
    """
    names = dict.fromkeys(name for score in scores for name in score)
    shown = [name for name in names if name not in ("mlm", "loss", "masked_tokens", "attention_kl")]
    special = {"perplexity": ("perplexity", "{:.1f}"), "accuracy": ("accuracy", "{:.1%}"),
               "kl": ("KL to teacher", "{:.3f}"), "attention_kl": ("KL of attention", "{:.3f}")}
    return {name: special.get(name, (name.replace("_", " "), "{:.3f}"))
            for name in (*shown, *(name for name in names if name == "attention_kl"))}


def comparison(models: dict[str, nn.Module], scores: dict[str, dict], speeds: dict[str, float]) -> list[dict]:
    """Returns the rows of the table, one for each model. A row is a dict from headings to values: the model's
    name, its size, its speed and its held-out figures. Tied weights are counted once.
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
    """Returns lines of text: each sentence with a [MASK], and under it one line for each model, with the
    tokens that the model predicts. A sentence that is too long for one of the models is left out.
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
