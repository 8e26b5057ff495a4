"""Reads and makes the files of sentence-transformers in a model's folder. These files say how `embed`
computes a sentence vector.

    modules.json                        the modules in order: Transformer, Pooling, Dense, Normalize
    1_Pooling/config.json               the settings of the module Pooling
    2_Dense/                            the settings and weights of the module Dense
    sentence_bert_config.json           the largest number of tokens, and whether texts are lower-cased
    config_sentence_transformers.json   the prompts, and how many numbers of each vector are kept
"""

import json
from pathlib import Path

import safetensors
import safetensors.torch
from torch import nn

from minibert.common.disk import read_json, read_text
from minibert.common.errors import UserError
from minibert.hub.weight_files import read_bin
from minibert.model.sentences import POOLING, Normalize, SentencePooling

# Older config files of the module Pooling have one field for each kind of pooling, with true or false. If
# several fields are true, the pooled vectors are concatenated in the order of this dict.
SWITCHES = {"pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max",
            "pooling_mode_mean_tokens": "mean", "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
            "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken"}
SHARED = "config_sentence_transformers.json"
OWN = ("sentence_bert_config.json", "sentence_distilbert_config.json")
# `embed` knows these settings of sentence_bert_config.json. It uses max_seq_length and do_lower_case.
# The value of module_output_name must be "token_embeddings" or null. The other settings here are ignored.
# Any other setting must have the value false, 0 or null, or an empty value. Otherwise, `embed` refuses the
# model.
KNOWN = {
    "max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name",
    "model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "unpad_inputs"}


def read_sentence_files(folder: Path, hidden_size: int, legacy_bin: bool = False
                        ) -> tuple[SentencePooling | None, dict[str, bytes]]:
    """Returns the `SentencePooling` of the model in `folder` (None if no modules.json names the folder), and
    the files of sentence-transformers, as a dict from paths to contents.

    In the old layout, `folder` is the subfolder 0_Transformer/, and modules.json is in the parent folder. If
    a file is damaged or a setting is not supported, `SentencePooling.refused` has the reason. `embed` then
    refuses the model, but `load` does not.
    """
    root, inside = folder, ""
    above = folder.resolve().parent
    if not (root / "modules.json").is_file() and (above / "modules.json").is_file():
        root, inside = above, folder.resolve().name
    files = {}
    for place in {root, folder}:
        for name in (SHARED, *OWN):
            if (place / name).is_file():
                files[name] = (place / name).read_bytes()
    if not (root / "modules.json").is_file():  # not a sentence encoder, for example a cross-encoder
        return None, files
    try:
        modules = _modules(root)
        if inside not in [module["path"] for module in modules]:
            return None, {}
        for module in modules:
            if module["path"] not in ("", inside):
                files |= _module_files(root, module["path"], legacy_bin)
        described = [module | {"path": "" if module["path"] == inside else module["path"]}
                     for module in modules]
        files["modules.json"] = _json(described)
        return _pooling(root, folder, described, files, hidden_size), files
    except UserError as error:
        return SentencePooling(refused=str(error)), files
    except (KeyError, TypeError, ValueError, AttributeError, safetensors.SafetensorError) as error:
        return SentencePooling(refused=f"{root / 'modules.json'} or a file that it names is damaged "
                                       f"({error!r})"), files


def sentence_files(pooling: SentencePooling, hidden_size: int, shared: bytes | None = None
                   ) -> dict[str, bytes]:
    """Returns the files that describe `pooling`, as a dict from paths to contents. `hidden_size` is that of
    the encoder. `shared` is the content of config_sentence_transformers.json, which has the prompts and
    `pooling.width` (None: the file is not made).
    """
    files = {SHARED: shared} if shared else {}
    kinds, layers = ["Transformer", "Pooling"], list(pooling.layers)
    modes = {switch: mode in pooling.modes for switch, mode in SWITCHES.items()}
    if [SWITCHES[switch] for switch, on in modes.items() if on] != list(pooling.modes):
        modes = {"pooling_mode": pooling.modes}  # true and false fields cannot give this order
    files["1_Pooling/config.json"] = _json({"word_embedding_dimension": hidden_size} | modes)
    while layers:
        layer = layers.pop(0)
        if isinstance(layer, Normalize):
            kinds.append("Normalize")
            continue
        activation, place = type(layers.pop(0)), f"{len(kinds)}_Dense"
        kinds.append("Dense")
        files[f"{place}/config.json"] = _json({
            "in_features": layer.in_features, "out_features": layer.out_features,
            "bias": layer.bias is not None,
            "activation_function": f"{activation.__module__}.{activation.__name__}"})
        tensors = {f"linear.{name}": tensor.detach().cpu() for name, tensor in layer.state_dict().items()}
        files[f"{place}/model.safetensors"] = safetensors.torch.save(tensors, {"format": "pt"})
    files[OWN[0]] = _json({"max_seq_length": pooling.max_length, "do_lower_case": pooling.lowercase})
    files["modules.json"] = _json([
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "",
         "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)])
    return files


def _json(content) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _modules(root: Path) -> list[dict]:
    """Returns the content of modules.json. Raises `UserError` if the content is not a list, or if the path of
    a module is not the name of a folder in `root`.
    """
    file = root / "modules.json"
    modules = json.loads(read_text(file))
    if not isinstance(modules, list):
        raise UserError(f"{file} is not a list of modules")
    for module in modules:
        # a path with "/" or ".." could name any file of the machine
        if Path(module["path"]).name != module["path"] or module["path"] == "..":
            raise UserError(f"{file}: {module['path']!r} is not the name of a folder beside it")
    return modules


def _module_files(root: Path, name: str, legacy_bin: bool) -> dict[str, bytes]:
    """Returns the files with the settings and weights of a module, as a dict from paths to contents. Pickled
    weights are read only if there is no model.safetensors. They are converted to safetensors with
    `legacy_bin`, and refused with a `UserError` without it.
    """
    found = {}
    for path in sorted((root / name).glob("*.json")) + sorted((root / name).glob("*.safetensors")):
        found[f"{name}/{path.name}"] = path.read_bytes()
    pickled = root / name / "pytorch_model.bin"
    if f"{name}/model.safetensors" not in found and pickled.is_file():
        if not legacy_bin:
            raise UserError(f"{pickled.parent} holds only pickled weights (.bin), which are not loaded; "
                            "convert the model once: python weights/convert.py FOLDER TARGET")
        found[f"{name}/model.safetensors"] = safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in read_bin(pickled).items()}, {"format": "pt"})
    return found


def _pooling(root: Path, folder: Path, modules: list[dict], files: dict[str, bytes], hidden_size: int
             ) -> SentencePooling:
    """Returns the `SentencePooling` that `modules` and `files` describe. Raises `UserError` if a module or a
    setting is not supported.
    """
    def settings(name: str) -> dict:
        return json.loads(files.get(name, b"{}"))

    kinds = [module["type"].rpartition(".")[2] if module["type"].startswith("sentence_transformers.")
             else module["type"] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise UserError(f"{root / 'modules.json'} begins with {' and '.join(kinds[:2])}, but embed needs a "
                        "Transformer and then a Pooling")
    modes = _modes(root / modules[1]["path"], settings(f"{modules[1]['path']}/config.json"))
    layers, width = [], hidden_size * len(modes)
    for module, kind in zip(modules[2:], kinds[2:]):
        place, own = root / module["path"], settings(f"{module['path']}/config.json")
        if any(own.get(name) not in (None, "sentence_embedding")
               for name in ("module_input_name", "module_output_name")):
            raise UserError(f"{place} reads {own.get('module_input_name')}, but embed supports only "
                            "sentence_embedding")
        if kind == "Normalize":
            layers.append(Normalize())
        elif kind == "Dense":
            layers += _dense(place, own, files.get(f"{module['path']}/model.safetensors", b""))
            if layers[-2].in_features != width:
                raise UserError(f"{place} needs vectors of {layers[-2].in_features} numbers, but gets "
                                f"vectors of {width}")
            width = layers[-2].out_features
        elif kind != "Dropout":
            raise UserError(f"{root / 'modules.json'} names a module {kind}, which embed does not know")
    name = next((name for name in OWN if name in files), "")
    own, shared = settings(name), settings(SHARED)
    odd = [key for key, value in own.items() if key not in KNOWN and value]
    if own.get("module_output_name") not in (None, "token_embeddings"):
        odd.append("module_output_name")
    if odd:
        raise UserError(f"{name} of {root} sets {', '.join(odd)}, which embed does not know")
    prompt = (shared.get("prompts") or {}).get(shared.get("default_prompt_name") or "", "") or ""
    if prompt and settings(f"{modules[1]['path']}/config.json").get("include_prompt") is False:
        raise UserError(f"{root / modules[1]['path']} leaves out the tokens of the prompt (include_prompt), "
                        "which embed does not support")
    length = own.get("max_seq_length")
    if length is None and (folder / "tokenizer_config.json").is_file():
        length = read_json(folder / "tokenizer_config.json").get("model_max_length")
    return SentencePooling(modes, nn.Sequential(*layers).eval(), None if length is None else int(length),
                           own.get("do_lower_case") is True, prompt, shared.get("truncate_dim"))


def _modes(place: Path, settings: dict) -> tuple[str, ...]:
    """Returns the kinds of pooling in the settings of a Pooling module (default: only the mean)."""
    modes = settings.get("pooling_mode")
    if modes is None:
        on = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value]
        modes = [SWITCHES[name] for name in SWITCHES if name in on] + sorted(set(on) - set(SWITCHES))
    modes = (modes,) if isinstance(modes, str) else tuple(modes) or ("mean",)
    unknown = [mode for mode in modes if mode not in POOLING]
    if unknown:
        raise UserError(f"{place} uses the pooling {', '.join(unknown)}; embed supports {', '.join(POOLING)}")
    return modes


def _dense(place: Path, settings: dict, weights: bytes) -> list[nn.Module]:
    """Returns a list of two modules: the linear layer of a Dense module, and the activation after this layer.
    `weights` is the content of the Dense module's safetensors file.
    """
    if settings.get("use_residual"):
        raise UserError(f"{place} has a residual connection (use_residual), which embed does not know")
    path = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    kind = getattr(nn, path.rpartition(".")[2], None) if path.startswith("torch.nn.") else None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(f"{place} has the activation {path}, which is not a class of torch.nn")
    linear = nn.Linear(settings["in_features"], settings["out_features"], settings.get("bias", True))
    tensors = safetensors.torch.load(weights)
    wanted = {f"linear.{name}": value.shape for name, value in linear.state_dict().items()}
    if {name: value.shape for name, value in tensors.items()} != wanted:
        raise UserError(f"the weights in {place} do not fit its config.json, which needs "
                        f"{', '.join(sorted(wanted))}")
    linear.load_state_dict({name.removeprefix("linear."): value.float() for name, value in tensors.items()})
    return [linear, kind()]
