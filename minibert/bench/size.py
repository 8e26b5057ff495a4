"""Counts parameters, bytes in fp32 and FLOPs of models, and prints them beside published figures. A preset is
counted as an encoder with its pooler (if it has one). A model in a folder is counted with its head.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

import minibert
from minibert.bench.flops import FLOPS_FORMULA, encoder_flops
from minibert.common.console import table
from minibert.common.options import at_least_one, option
from minibert.hub.load_save import head_of
from minibert.model.config import PRESETS, preset
from minibert.model.heads import build_encoder, encoder_of
from minibert.model.init import on_meta

NOTES = """fp32 MB: the size with 4 bytes for each parameter; the size in fp16 is half of it
published: the figures of the papers; minibert/bench/size.py names the paper of each figure"""
PUBLISHED_LENGTH = 128  # length of the sequence for which the papers give FLOPs

# Published numbers of parameters in millions, and of FLOPs in 10^9 (None: not published).
PUBLISHED = {
    # parameters: Devlin et al. 2018; FLOPs: TinyBERT paper
    "bert-base": (110, 22.5),
    "bert-large": (340, None),  # Devlin et al. 2018
    "distilbert": (66, 11.3),  # parameters: Sanh et al. 2019, table 3; FLOPs: TinyBERT paper
    # the next two lines: TinyBERT paper (Jiao et al. 2020)
    "distilbert-4": (52.2, 7.6), "bert-pkd-4": (52.2, 7.6), "bert-pkd-6": (67.0, 11.3),
    "tinybert-4": (14.5, 1.2), "tinybert-6": (67.0, 11.3), "bert-small": (29.2, 3.4),
    # parameters: PKD paper (Sun et al. 2019); FLOPs: MobileBERT paper; both figures were copied from sources
    # that quote these papers
    "bert-pkd-3": (45.7, 5.7),
    # the next two lines: MobileBERT paper (Sun et al. 2020), copied from sources that quote this paper
    "mobilebert-paper": (25.3, 5.7), "mobilebert-tiny": (15.1, 3.1), "mobilebert-without-opt": (25.3, 5.7),
    "ib-bert-large": (293, None),
}


@dataclass(frozen=True)
class SizeBench:
    """Every option of `bench.py size`."""

    models: tuple[str, ...] = option((), "presets, or folders of models; the name --models may be left out: "
                                         "bench.py size MODEL ... (default: all presets)")
    length: int = option(PUBLISHED_LENGTH, "length in tokens of the sequence whose FLOPs are counted")

    def __post_init__(self):
        at_least_one(self, "length")


def count(module: nn.Module | None) -> int:
    """Returns the number of parameters of a module, or 0 for None. A shared tensor is counted once."""
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def size_of(name: str, length: int) -> dict:
    """Returns a dict with the number of parameters of a model, the FLOPs of its forward pass for one sequence
    of `length` tokens, and the published figures. The FLOPs are None if the model has fewer than `length`
    positions. `name` is a preset or the folder of a model. Raises `UserError` for any other name.
    """
    if name not in PRESETS and Path(name).is_dir():
        model = minibert.load(name)
    else:
        config = preset(name)
        model = on_meta(build_encoder, config, pooler=config.architecture != "distilbert")
    encoder, parameters = encoder_of(model), count(model)
    config, fits = encoder.config, length <= encoder.config.max_positions
    tables = sum(map(count, (encoder.word, encoder.position, encoder.segment)))
    flops = encoder_flops(config, length)
    millions, billions = PUBLISHED.get(name, (None, None))
    return {"model": name, "head": head_of(model), "parameters": parameters,
            "published_parameters": millions and 1e6 * millions, "without_embeddings": parameters - tables,
            "flops": flops if fits else None,
            "flops_with_d_x_d": flops + 2 * length * config.hidden_size**2 if fits else None,
            "published_flops": 1e9 * billions if billions and length == PUBLISHED_LENGTH else None}


def shown(row: dict) -> dict:
    """Returns a row of the table as a dict from columns to texts. `row` is a result of `size_of`."""
    def number(value: float | None, unit: float, form: str) -> str:
        return "-" if value is None else format(value / unit, form)

    parameters, published = row["parameters"], row["published_parameters"]
    return {"model": row["model"] if row["head"] == "encoder" else f"{row['model']} ({row['head']})",
            "million parameters": number(parameters, 1e6, ".2f"), "published": number(published, 1e6, "g"),
            "apart": "-" if published is None else f"{100 * (parameters / published - 1):+.1f} %",
            "no embeddings": number(row["without_embeddings"], 1e6, ".2f"),
            "fp32 MB": number(4 * parameters, 1e6, ".1f"), "GFLOP": number(row["flops"], 1e9, ".2f"),
            "with D x D": number(row["flops_with_d_x_d"], 1e9, ".2f"),
            "published ": number(row["published_flops"], 1e9, "g")}


def bench_size(options: SizeBench) -> dict:
    """Runs `bench.py size` and returns the results."""
    rows = [size_of(name, options.length) for name in options.models or PRESETS]
    print(table([shown(row) for row in rows],
                f"Sizes of models, and the forward pass of one sequence of {options.length} tokens"))
    print(f"\n{FLOPS_FORMULA}\n{NOTES}")
    return {"bench": "size", "length": options.length, "models": rows}
