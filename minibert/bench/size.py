"""Counts parameters, bytes on disk and FLOPs of models, and compares them with published figures.

This command measures nothing. For a preset it counts the encoder, and for a BERT also the pooler. It uses
torch's meta device, which has shapes and needs no memory. For a folder it counts the model with its own head.
It reads only the headers of the weight files.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors
from torch import nn

from minibert.bench.flops import FLOPS_FORMULA, encoder_flops, extra_layer_flops
from minibert.common.console import table
from minibert.common.disk import read_json
from minibert.common.errors import UserError
from minibert.common.options import at_least_one, option
from minibert.hub.hf_config import parse
from minibert.hub.load_save import MODELS
from minibert.hub.weight_files import existing
from minibert.model.config import PRESETS, Config
from minibert.model.init import on_meta
from minibert.model.heads import MaskedLM, PreTraining, build_encoder, encoder_of

SIZES = """fp32 MB, fp16 MB: 4 and 2 bytes for each parameter, without the header of a file (some kilobytes)
int8 MB: an estimate with one byte for each element of a matrix or table, and four bytes for other elements
=: the folder stores this precision, and the number is the size of its weight files"""

PUBLISHED_LENGTH = 128  # papers give the FLOPs of one sequence with this number of tokens
STORED = {"F32": "fp32", "F16": "fp16", "BF16": "fp16", "I8": "int8", "U8": "int8"}  # 2 bytes: fp16, bf16


class Figure(NamedTuple):
    """A published number as the paper prints it, for example "22.5B", and its source."""

    text: str
    source: str

    @property
    def value(self) -> float:
        """The published number as a float."""
        return float(self.text[:-1]) * {"M": 1e6, "B": 1e9}[self.text[-1]]

    def fits(self, number: float) -> bool:
        """Whether `number` rounds to the published number. 110M and 340M count as rounded to ten million."""
        digits, _, decimals = self.text[:-1].partition(".")
        step = 10.0 ** -len(decimals) if decimals else 10.0 if digits.endswith("0") else 1.0
        return abs(number - self.value) <= step / 2 * self.value / float(self.text[:-1])


BERT, DISTILBERT = "Devlin et al. 2018", "Sanh et al. 2019, table 3"
TINYBERT_PAPER = "Jiao et al. 2020 (TinyBERT)"  # this paper also lists BERT-base, with 109M
PKD = "Sun et al. 2019 (PKD), as other sources give it"
MOBILEBERT = "Sun et al. 2020 (MobileBERT), as other sources give it"

# The figures of the small models bert-L*-H* (Turc et al. 2019) are missing: the paper was not available.
PARAMETERS = {
    "bert-base": Figure("110M", BERT),
    "bert-large": Figure("340M", BERT),
    "distilbert": Figure("66M", DISTILBERT),
    "distilbert-4": Figure("52.2M", TINYBERT_PAPER),
    "bert-pkd-3": Figure("45.7M", PKD),
    "bert-pkd-4": Figure("52.2M", TINYBERT_PAPER),
    "bert-pkd-6": Figure("67.0M", TINYBERT_PAPER),
    "tinybert-4": Figure("14.5M", TINYBERT_PAPER),
    "tinybert-6": Figure("67.0M", TINYBERT_PAPER),
    "bert-small": Figure("29.2M", TINYBERT_PAPER),
    "mobilebert-paper": Figure("25.3M", MOBILEBERT),
    "mobilebert-tiny": Figure("15.1M", MOBILEBERT),
    "mobilebert-without-opt": Figure("25.3M", MOBILEBERT),
    "ib-bert-large": Figure("293M", MOBILEBERT),
}
FLOPS = {
    "bert-base": Figure("22.5B", TINYBERT_PAPER),
    "distilbert": Figure("11.3B", TINYBERT_PAPER),
    "distilbert-4": Figure("7.6B", TINYBERT_PAPER),
    "bert-pkd-3": Figure("5.7B", MOBILEBERT),
    "bert-pkd-4": Figure("7.6B", TINYBERT_PAPER),
    "bert-pkd-6": Figure("11.3B", TINYBERT_PAPER),
    "tinybert-4": Figure("1.2B", TINYBERT_PAPER),
    "tinybert-6": Figure("11.3B", TINYBERT_PAPER),
    "bert-small": Figure("3.4B", TINYBERT_PAPER),
    "mobilebert-paper": Figure("5.7B", MOBILEBERT),
    "mobilebert-tiny": Figure("3.1B", MOBILEBERT),
    "mobilebert-without-opt": Figure("5.7B", MOBILEBERT),
}


@dataclass(frozen=True)
class SizeBench:
    """Every option of bench.py size."""

    models: tuple[str, ...] = option((), "presets, or folders of models (default: all presets); words right "
                                         "after `size` are such models, too")
    length: int = option(PUBLISHED_LENGTH, "length in tokens of the sequence whose FLOPs are counted")

    def __post_init__(self):
        at_least_one(self, "length")


def count(module: nn.Module | None) -> int:
    """The number of parameters of a module. A shared table is counted once. 0 for None."""
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def counts(config: Config) -> dict[str, int]:
    """The parameters of a shape, counted in several ways. It is not known which way a paper used."""
    if config.architecture == "distilbert":
        return {"encoder": count(on_meta(build_encoder, config)),
                "MLM head too": count(on_meta(MaskedLM, config))}
    return {"encoder": count(on_meta(build_encoder, config)),
            "pooler too": count(on_meta(build_encoder, config, pooler=True)),
            "pre-training heads too": count(on_meta(PreTraining, config))}


def disk_bytes(model: nn.Module) -> dict[str, int]:
    """The bytes of the tensors in each precision. Those of int8 are an estimate (`SIZES`)."""
    total = count(model)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    return {"fp32": 4 * total, "fp16": 2 * total, "int8": matrices + 4 * (total - matrices)}


def stored(folder: Path) -> tuple[str | None, int, list[str]]:
    """Returns the precision of a folder's weight files (that of the largest tensor), their size in bytes, and
    the names of the tensors.
    """
    files = sorted(folder.glob("model*.safetensors")) or [existing(folder / "model.safetensors")]
    kinds, names = {}, []
    for path in files:
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                for name in file.keys():
                    part = file.get_slice(name)
                    kinds[part.get_dtype()] = max(kinds.get(part.get_dtype(), 0), math.prod(part.get_shape()))
                    names.append(name)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or is no safetensors file ({error})") from None
    precision = STORED.get(max(kinds, key=kinds.get)) if kinds else None
    return precision, sum(path.stat().st_size for path in files), names


def size_of(name: str, length: int) -> dict:
    """The figures of a preset, or of the model in a folder. Raises `UserError` for another `name`."""
    if name not in PRESETS and Path(name).is_dir():
        path = existing(Path(name) / "config.json")
        config, head = parse(read_json(path), path)
        precision, file_bytes, tensors = stored(Path(name))
        head = head if head in MODELS else "encoder"  # the parameters of an unknown head are not counted
        if head == "encoder":
            model = on_meta(build_encoder, config, pooler=any("pooler." in tensor for tensor in tensors))
        else:
            model = on_meta(MODELS[head], config)
        published = {}
    else:
        if name not in PRESETS:
            raise UserError(f"{name!r} is neither a folder nor a preset; there are: {', '.join(PRESETS)}")
        config, head, precision = PRESETS[name], "encoder", None
        model = on_meta(build_encoder, config, pooler=config.architecture != "distilbert")
        published = {"parameters": PARAMETERS.get(name)}
        if length == PUBLISHED_LENGTH:
            published["flops"] = FLOPS.get(name)
    encoder = encoder_of(model)
    sizes = disk_bytes(model)
    if precision:
        sizes[precision] = file_bytes
    tables = {"word": count(encoder.word), "position": count(encoder.position),
              "segments": count(encoder.segment)}
    fits = length <= config.max_positions
    figures = {"parameters": count(model), "flops": encoder_flops(config, length) if fits else None}
    row = {"model": name, "head": head, **figures, "without_embeddings": count(model) - sum(tables.values()),
           "embeddings": tables, "bytes": sizes, "stored": precision, "published": {},
           "flops_with_d_x_d": figures["flops"] + extra_layer_flops(config, length) if fits else None}
    for what, figure in published.items():
        if figure is not None and figures[what] is not None:
            alike = counts(config) if what == "parameters" else {
                "formula": row["flops"], "with D x D": row["flops_with_d_x_d"]}
            row["published"][what] = {
                "printed": figure.text, "source": figure.source,
                "deviation": figures[what] / figure.value - 1,
                "rounds_to_it": [way for way, number in alike.items() if figure.fits(number)]}
    return row


def shown(row: dict) -> dict:
    """The texts of one row of the printed table."""
    def beside(what: str) -> tuple[str, str]:
        figure = row["published"].get(what)
        return (figure["printed"], f"{100 * figure['deviation']:+.1f} %") if figure else ("-", "-")

    def billions(flops: int | None) -> str:
        return "-" if flops is None else f"{flops / 1e9:.2f}"

    (parameters, apart), (flops, flops_apart) = beside("parameters"), beside("flops")
    megabytes = {f"{name} MB": ("= " if name == row["stored"] else "") + f"{size / 1e6:.1f}"
                 for name, size in row["bytes"].items()}
    return {"model": row["model"] if row["head"] == "encoder" else f"{row['model']} ({row['head']})",
            "parameters": f"{row['parameters'] / 1e6:.2f}M", "published": parameters, "apart": apart,
            "no embeddings": f"{row['without_embeddings'] / 1e6:.2f}M", **megabytes,
            "GFLOP": billions(row["flops"]), "publ.": flops, "GFLOP apart": flops_apart,
            "with D x D": billions(row["flops_with_d_x_d"])}


def show_sizes(rows: list[dict], length: int) -> None:
    """Prints the table, the formulas, and a second table: which way of counting gives a published figure."""
    title = f"Sizes of models, and the forward pass of one sequence of {length} tokens"
    print(table([shown(row) for row in rows], title))
    print(f"\n{FLOPS_FORMULA}\n{SIZES}\n")
    papers = [{"model": row["model"], "what": what, "published": figure["printed"],
               "rounds to it": ", ".join(figure["rounds_to_it"]) or "no count here",
               "source": figure["source"]}
              for what in ("parameters", "flops") for row in rows
              for figure in [row["published"].get(what)] if figure]
    if papers:
        print(table(papers, "Published figures, and the ways of counting that round to them"))


def bench_size(options: SizeBench) -> dict:
    """Counts and prints. Returns the content of the JSON line."""
    rows = [size_of(name, options.length) for name in options.models or PRESETS]
    show_sizes(rows, options.length)
    return {"bench": "size", "length": options.length, "formula": FLOPS_FORMULA.split("\n")[0],
            "models": rows}
