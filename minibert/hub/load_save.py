"""Loads and saves models in Hugging Face's layout.

Loading is strict: the file must have every tensor of the model, with the shape that config.json gives, and no
other tensor. There are two exceptions. A file may have the additional tensors that hf_names.py lists. A head
for classification or answer spans that is not in the file gets new random weights.
"""

import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minibert.common.disk import disk_errors, folder_within, fsync, read_json
from minibert.common.errors import UserError
from minibert.common.hub_download import local_folder
from minibert.data.tokenizer import Tokenizer
from minibert.hub.hf_config import describe, difference, dump, other_settings, parse
from minibert.hub.hf_names import CLASSES, DROPPED, HEAD_MODULES, TIED, from_hf, full_hf_name, to_hf
from minibert.hub.model_card import model_card
from minibert.hub.sentence_files import read_sentence_files
from minibert.hub.weight_files import existing, read_tensors, write_tensors
from minibert.model.config import Config
from minibert.model.encoder import Encoder
from minibert.model.init import on_meta, truncated_normal_
from minibert.model.heads import Classifier, MaskedLM, PreTraining, Span, build_encoder

MODELS = {"encoder": Encoder, "mlm": MaskedLM, "pretraining": PreTraining, "classification": Classifier,
          "span": Span}


@dataclass(frozen=True)
class Beside:
    """The contents of a loaded folder that `save` writes again for other libraries."""

    settings: dict = field(default_factory=dict)  # the result of `other_settings` for config.json
    tensors: dict[str, Tensor] = field(default_factory=dict)  # tensors of unused heads, with minibert's names
    files: dict[str, bytes] = field(default_factory=dict)  # sentence-transformers' files: path to content


def load(folder_or_hub_name: str | Path, head: str | None = None, *, legacy_bin: bool = False,
         **changes) -> nn.Module:
    """Loads a model from a folder or the Hugging Face hub. The model is on the CPU, in fp32, in eval mode.

    `head` is "encoder", "mlm", "pretraining", "classification" or "span" (None: the head of the checkpoint).
    A head for classification or spans that the checkpoint does not have gets new random weights. A warning
    then names the new tensors.

    `changes` replace fields of the `Config`. If `changes` has `labels`, the last layer of a classifier gets
    new random weights. The attention dropout is 0 unless `changes` sets another value; the value in
    config.json is ignored. With `legacy_bin`, pytorch_model.bin is read if there is no model.safetensors.

    The attribute `sentences` of the model says how `embed` computes a sentence vector (None: in the
    default way). The attribute `beside` has the settings, tensors and files of the folder that `save` writes
    again. If the model has the head of the checkpoint, and `changes` has neither `labels` nor `problem_type`,
    both attributes are read from the folder. Otherwise, an encoder gets `sentences`, and its `beside` has
    only the files of sentence-transformers. Any other model gets `sentences` None and an empty `beside`.

    Raises `UserError` if `head` is "mlm" or "pretraining" and the checkpoint has no such head. A single
    `UserError` reports all tensors that are missing, unexpected or of a wrong shape.
    """
    if head is not None and head not in MODELS:
        raise UserError(f"head {head!r} is not known: {', '.join(MODELS)}")
    folder = local_folder(folder_or_hub_name)
    raw = read_json(existing(folder / "config.json"))
    config, stated = parse(raw, folder / "config.json")
    tensors = read_tensors(folder, legacy_bin)
    renamed, names, untied = _our_names(folder, tensors, config.architecture)

    own = stated or _head_of_tensors(renamed)
    wanted = head or own
    _check_head(folder, wanted, config.architecture, renamed, untied)
    relabelled = wanted == "classification" and "labels" in changes
    # The checkpoint's classifier is not used if the caller gives new labels, or if minibert does not know the
    # checkpoint's class (for example, a token classifier).
    if relabelled or own not in MODELS:
        renamed = {name: value for name, value in renamed.items() if not name.startswith("classifier.")}
    elif wanted == own == "classification" and any(name.startswith("fit_dense") for name in tensors):
        warnings.warn(f"{folder}: TinyBERT's own code puts a ReLU before this classifier; transformers and "
                      "minibert do not, so the outputs differ from those of TinyBERT's own code",
                      stacklevel=2)

    config = replace(config, **changes)
    model, prefix = _empty(wanted, config, renamed)
    shapes = {prefix + name: value.shape for name, value in model.state_dict().items()}
    new = _new_tensors(shapes, renamed) if relabelled or wanted != own else []
    # Shapes are checked before new tensors are made. With a wrong size in config.json, the new tensors could
    # fill the memory.
    _check_tensors(folder, wanted, config.architecture,
                   {name: shape for name, shape in shapes.items() if name not in new}, renamed, names)
    if new:
        warnings.warn(f"{folder}: these tensors are not taken from the checkpoint and get new weights: "
                      f"{', '.join(new)}", stacklevel=2)
        renamed |= {name: _initial(name, shapes[name], config.initializer_range) for name in new}
    # the tensors are copied, because the memory-mapped file may change later
    state = {name.removeprefix(prefix): renamed[name].to(torch.float32, copy=True) for name in shapes}
    bad = [names.get(prefix + name, name) for name, tensor in state.items() if not tensor.isfinite().all()]
    if bad:
        raise UserError(f"{folder}: {_few(bad)} holds values that are not finite numbers; the file is "
                        "damaged, or the training that wrote it diverged: take an earlier checkpoint")
    model.load_state_dict(state, assign=True)
    model.sentences, model.beside = None, Beside()
    unchanged = wanted == own and not {"labels", "problem_type"} & changes.keys()
    if unchanged or wanted == "encoder":
        model.sentences, files = read_sentence_files(folder, config.hidden_size, legacy_bin)
        model.beside = Beside(files=files if model.sentences else {})
    if unchanged:
        others = {name: renamed[name].to(torch.float32, copy=True) for name in renamed.keys() - shapes.keys()}
        model.beside = Beside(other_settings(raw), others, files)
    return model.eval()


def load_config(folder_or_hub_name: str | Path) -> Config:
    """Returns the `Config` of a model in a folder or on the hub, without reading the weights."""
    return config_and_head(folder_or_hub_name)[0]


def config_and_head(folder_or_hub_name: str | Path) -> tuple[Config, str | None]:
    """Returns the `Config` and the head of a model in a folder or on the hub, as described in `parse`."""
    folder = local_folder(folder_or_hub_name, weights=False)
    return parse(read_json(existing(folder / "config.json")), folder / "config.json")


def head_of(model: nn.Module) -> str:
    """Returns the name of a model's head, as in the argument `head` of `load`."""
    return next(head for head, kind in MODELS.items() if isinstance(model, kind))


def _empty(head: str, config: Config, renamed: Iterable[str]) -> tuple[nn.Module, str]:
    """Returns a model whose tensors have shapes but no memory yet, and a prefix: "encoder." for an encoder,
    otherwise "". hf_names.py puts this prefix before the tensor names of the model. An encoder has a pooler
    only if the checkpoint has one. `renamed` has the names of the checkpoint's tensors.
    """
    if head == "encoder":
        return on_meta(build_encoder, config, pooler="encoder.pooler.weight" in renamed), "encoder."
    return on_meta(MODELS[head], config), ""


def _our_names(folder: Path, tensors: dict[str, Tensor], architecture: str
               ) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Returns two dicts with minibert's tensor names as keys, and an error message. The first dict has the
    tensors. The second dict has the tensors' names in the files. The message is "" unless two tied tensors
    (`TIED`) have different values. The name of a tensor that minibert does not know begins with "unknown".
    """
    full, untied = {}, ""
    for name, tensor in tensors.items():
        long = full_hf_name(name, architecture)
        if long in full:
            raise UserError(f"{folder} holds two tensors for {long}")
        full[long] = name, tensor
    for twin, original in TIED[architecture].items():
        if twin in full:
            name, tensor = full.pop(twin)
            kept = full.setdefault(original, (name, tensor))[1]
            if not torch.equal(kept, tensor):
                untied = f"{name} differs from {original}"
    renamed, names = {}, {}
    for long, (name, tensor) in full.items():
        if not any(re.fullmatch(pattern, long) for pattern in DROPPED):
            our_name = from_hf(long, architecture) or f"unknown {name}"
            renamed[our_name], names[our_name] = tensor, name
    return renamed, names, untied


def _few(names: Iterable[str], n: int = 5) -> str:
    names = sorted(names)
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def _head_of_tensors(renamed: Iterable[str]) -> str:
    """Returns the head to which the tensors belong, for folders whose config.json names no head."""
    modules = {"nsp": "pretraining", "mlm": "mlm", "classifier": "classification", "span": "span"}
    return next((head for module, head in modules.items() if f"{module}.bias" in renamed), "encoder")


def _new_tensors(shapes: dict[str, torch.Size], renamed: dict[str, Tensor]) -> list[str]:
    """Returns the names of the tensors whose module is in the model (`shapes`) but not in the checkpoint
    (`renamed`). Only the pooler and the heads for classification and spans are examined.
    """
    return [name for name in shapes for module in ("encoder.pooler", "pre_classifier", "classifier", "span")
            if name.startswith(f"{module}.") and not {f"{module}.weight", f"{module}.bias"} & renamed.keys()]


def _initial(name: str, shape: torch.Size, std: float) -> Tensor:
    tensor = torch.zeros(shape)
    if name.endswith("weight") and std > 0:
        truncated_normal_(tensor, std)
    return tensor


def _check_head(folder: Path, head: str, architecture: str, renamed: Iterable[str], untied: str) -> None:
    """Raises `UserError` if minibert or the architecture has no head with the name `head`. For "mlm" and
    "pretraining", also raises `UserError` if the checkpoint lacks the head, or if two tied tensors differ
    (`untied` is the message of `_our_names`).
    """
    if head not in MODELS:
        raise UserError(f"{folder} is a {head}, which has a head that is not known here; "
                        "head=\"encoder\" loads its encoder, "
                        "head=\"classification\" or \"span\" starts a new head on it")
    if head not in CLASSES[architecture]:
        raise UserError(f"{folder} is a {architecture}, which has no {head} head in minibert")
    for module in {"mlm": ["mlm"], "pretraining": ["mlm", "nsp"]}.get(head, []):
        if f"{module}.bias" not in renamed:
            unknown = _few(name.removeprefix("unknown ") for name in renamed if name.startswith("unknown "))
            raise UserError(f"{folder} has no {head} head: " + f"unexpected: {unknown}; " * bool(unknown)
                            + f"{to_hf(module + '.bias', architecture)} is missing, and only classification "
                              "and span heads can start with new weights"
                            + f"; train.py --method mlm --student {folder} trains one" * (head == "mlm"))
        if untied:
            raise UserError(f"{folder}: {untied}, but in minibert both are one tensor; head=\"encoder\" "
                            "needs only one of them")


def _check_tensors(folder: Path, head: str, architecture: str, shapes: dict[str, torch.Size],
                   renamed: dict[str, Tensor], names: dict[str, str]) -> None:
    """Raises one `UserError` for all differences between the tensors of the model and of the file. The file
    may have additional tensors of `HEAD_MODULES`.
    """
    problems = {"unexpected": [], "missing": [], "misshapen": []}
    for name, shape in shapes.items():
        if name not in renamed:
            problems["missing"].append(to_hf(name, architecture))
        elif renamed[name].shape != shape:
            problems["misshapen"].append(f"{names[name]} ({tuple(renamed[name].shape)} in the file, "
                                         f"{tuple(shape)} by config.json)")
        elif not renamed[name].is_floating_point():
            problems["misshapen"].append(f"{names[name]} ({renamed[name].dtype}, not floating point)")
    for name in renamed.keys() - shapes.keys():
        module, _, leaf = name.rpartition(".")
        if module not in HEAD_MODULES or leaf not in ("weight", "bias"):
            problems["unexpected"].append(names[name])
    found = "; ".join(f"{kind}: {_few(those)}" for kind, those in problems.items() if those)
    if found:
        raise UserError(f"the tensors in {folder} are not those of a {CLASSES[architecture][head]} with its "
                        f"config.json; {found}")


def save(model: nn.Module, folder: str | Path, tokenizer: Tokenizer | None = None,
         dtype: torch.dtype | None = None, card: str | None = None) -> None:
    """Writes config.json, model.safetensors, README.md and, if `tokenizer` is given, the tokenizer's files.
    Also writes the contents of `model.beside` for other libraries. Raises `UserError` if a weight is not
    finite in the precision `dtype`.

    If `transformers` does not support the model, a warning gives the reason. `model_type` in config.json then
    begins with "minibert-", and `transformers` refuses the files.

    `dtype` is the precision of the stored weights (None: that of the model). `card` is markdown text for the
    model card, README.md. A model that is already in the folder is replaced, and other files in the folder
    stay. If saving is interrupted, the folder has the complete old model, the complete new model, or no
    config.json. `load` refuses a folder without config.json.
    """
    model = getattr(model, "_orig_mod", model)  # the model inside the wrapper of torch.compile
    config, head, beside = model.config, head_of(model), getattr(model, "beside", Beside())
    # As in transformers, the tensor names in the file of an encoder do not begin with the architecture (for
    # example "bert."). But if `beside` adds the tensors of a head, the names of the encoder's tensors begin
    # with the architecture, as in the file of a model with a head.
    prefix = "encoder." if head == "encoder" and beside.tensors else ""
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()} | beside.tensors
    dtype = dtype or next(iter(state.values())).dtype
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    stored = str(dtype).removeprefix("torch.")
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"{name} holds values that are not finite numbers in {stored}; nothing was saved")
    if what := difference(config):
        warnings.warn(f"{folder}: transformers does not support this model ({what}), so only minibert loads "
                      "it", stacklevel=2)
    bare = head == "encoder" and not prefix
    state = {to_hf(f"encoder.{name}", config.architecture).removeprefix(f"{config.architecture}.") if bare
             else to_hf(name, config.architecture): tensor for name, tensor in state.items()}
    folder = Path(folder)
    parameters = sum(tensor.numel() for tensor in state.values())
    # All new files are complete on the disk before an old file is replaced. The old config.json is removed
    # first, and the new config.json is moved from the temporary folder `made` last. So if saving is
    # interrupted, a folder with old and new files has no config.json.
    with disk_errors(folder), folder_within(folder) as made:
        if tokenizer is not None:
            tokenizer.save(made, config.max_positions, config.architecture != "distilbert")
        for name, content in beside.files.items():
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_bytes(content)
        write_tensors(made / "model.safetensors", state, {"format": "pt"})
        (made / "README.md").write_text(model_card(model, head, parameters, stored, folder.resolve().name,
                                                   card), encoding="utf-8")
        (made / "config.json").write_text(dump(describe(config, head, stored, beside.settings)),
                                          encoding="utf-8")
        # only the owner can read a file that safetensors wrote, so the permissions of config.json are copied
        (made / "model.safetensors").chmod((made / "config.json").stat().st_mode)
        written = [path for path in made.rglob("*") if path.is_file()]
        for path in written:
            fsync(path)
        (folder / "config.json").unlink(missing_ok=True)
        for path in sorted(written, key=lambda path: path == made / "config.json"):
            target = folder / path.relative_to(made)
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
