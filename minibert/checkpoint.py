"""Checkpoints: everything a run is (weights, optimiser, step), in safetensors and JSON, never half-written.

A checkpoint is a folder `step-N`. It is written under another name, flushed to the disk and renamed, and only
then are older ones removed, all but one: whenever the process is killed, a whole checkpoint is there.
`state.json` is written after the tensors and holds their file's size and hash, so damage is seen.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minibert.disk import fsync, write_json
from minibert.errors import UserError

FORMAT = 1


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of a run by name:
    `model.*`, and for each parameter `optimizer.*.exp_avg`, `.exp_avg_sq`, `.step`.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer,
                    extra: dict) -> None:
    """Writes `folder/step-N` after N finished steps, and keeps the one before;
    `extra` is what else state.json holds.
    """
    target, partial = folder / f"step-{step}", folder / f"step-{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in state_tensors(model, optimizer).items()}
    file = partial / "state.safetensors"
    save_file(tensors, file)
    fsync(file)
    write_json(partial / "state.json", {"format": FORMAT, "step": step, "bytes": file.stat().st_size,
                                        "sha256": sha256_of(file), **extra})
    if target.exists():  # written by a run that this one resumed before it
        shutil.rmtree(target)
    os.replace(partial, target)
    fsync(folder)
    for _, old in checkpoints(folder)[2:]:
        shutil.rmtree(old)
    for left_over in folder.glob("*.partial"):
        shutil.rmtree(left_over)


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The finished checkpoints in a folder, newest first, as (step, path)."""
    found = [(int(path.name[5:]), path) for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, reverse=True)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
                    report=print) -> dict | None:
    """Loads the newest whole checkpoint into model and optimiser;
    returns its state.json, or None where there is none.

    A damaged one is named and the one before it used;
    `UserError` if all are damaged or one is of another model.
    """
    found = checkpoints(folder)
    for _, path in found:
        try:
            state, tensors = _read(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            report(f"checkpoint {path} is damaged ({error}); trying the one before it")
            continue
        _restore(path, tensors, model, optimizer)
        return state
    if found:
        raise UserError(f"every checkpoint in {folder} is damaged; remove the folder to start anew")
    return None


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    file = path / "state.safetensors"
    if state["format"] != FORMAT:
        raise ValueError(f"format {state['format']} instead of {FORMAT}")
    if file.stat().st_size != state["bytes"] or sha256_of(file) != state["sha256"]:
        raise ValueError("state.safetensors is not the file that was written")
    return state, load_file(file)


@torch.no_grad()
def _restore(path: Path, tensors: dict[str, Tensor], model: nn.Module,
             optimizer: torch.optim.Optimizer) -> None:
    ours = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    theirs = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    wrong = [name for name in ours.keys() | theirs.keys()
             if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape]
    if wrong:
        raise UserError(f"checkpoint {path} is of another model: {', '.join(sorted(wrong)[:3])} differ")
    for name, tensor in ours.items():
        tensor.copy_(theirs[name])
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        state = {key[len(prefix):]: value for key, value in tensors.items()
                 if key.startswith(prefix) and "." not in key[len(prefix):]}
        if state:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
