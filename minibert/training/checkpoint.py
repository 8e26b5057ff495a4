"""Checkpoints: the whole state of a run (weights, optimiser, step) in safetensors and JSON.

A checkpoint is a folder `step-N`. It is written under another name, flushed to the disk and renamed. Only
then are older ones removed, except one. So a complete checkpoint exists whenever the process is killed.
`state.json` is written after the tensors. It holds the size and hash of their file, so damage is detected.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from minibert.common.disk import disk_errors, fsync, read_json, sha256_of, write_json
from minibert.common.errors import UserError
from minibert.hub.weight_files import read_safetensors, write_tensors

FORMAT = 2


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
    """Writes `folder/step-N` after N finished steps and keeps the previous checkpoint.

    `extra` is added to state.json.
    """
    target, partial = folder / f"step-{step}", folder / f"step-{step}.partial"
    tensors = {name: t.detach().cpu().contiguous() for name, t in state_tensors(model, optimizer).items()}
    file = partial / "state.safetensors"
    with disk_errors(target):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            write_tensors(file, tensors)
            state = {"format": FORMAT, "step": step, "bytes": file.stat().st_size, "sha256": sha256_of(file),
                     **extra}
            write_json(partial / "state.json", state | {"seal": seal(state)})
        except UserError:
            shutil.rmtree(partial, ignore_errors=True)  # frees space if the disk is full
            raise
        if target.exists():  # written by a run that this one resumed before it
            shutil.rmtree(target)
        os.replace(partial, target)
        fsync(folder)
        for later, damaged in checkpoints(folder):
            if later > step:  # the run went back before it, and it would count as one of the two kept
                shutil.rmtree(damaged)
        for _, old in checkpoints(folder)[2:]:
            shutil.rmtree(old)
        for left_over in folder.glob("*.partial"):
            shutil.rmtree(left_over)


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The finished checkpoints in a folder, newest first, as (step, path)."""
    found = [(int(path.name[5:]), path) for path in folder.glob("step-*")
             if path.name[5:].isdecimal() and path.is_dir()]
    return sorted(found, reverse=True)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
                    report=print, scaler: torch.amp.GradScaler | None = None) -> dict | None:
    """Loads the newest complete checkpoint into model, optimiser and scaler.

    Returns its state.json, or None if there is no checkpoint. A damaged checkpoint is reported, and the
    previous one is used. Raises `UserError` if all are damaged or one is of another model.
    """
    found = checkpoints(folder)
    for step, path in found:
        try:
            state, tensors = _read(path, step)
        except (OSError, ValueError, UserError) as error:
            report(f"checkpoint {path} is damaged ({error}); trying the one before it")
            continue
        _restore(path, tensors, model, optimizer)
        if scaler is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        return state
    if found:
        raise UserError(f"every checkpoint in {folder} is damaged; remove the folder to start anew")
    return None


def _read(path: Path, step: int) -> tuple[dict, dict[str, Tensor]]:
    state, file = read_json(path / "state.json"), path / "state.safetensors"
    if state.get("format") != FORMAT:
        raise ValueError(f"format {state.get('format')} instead of {FORMAT}")
    if state.get("step") != step or state.pop("seal", None) != seal(state):
        raise ValueError("state.json is not the file that was written")
    if file.stat().st_size != state.get("bytes") or sha256_of(file) != state.get("sha256"):
        raise ValueError("state.safetensors is not the file that was written")
    return state, read_safetensors(file)


@torch.no_grad()
def _restore(path: Path, tensors: dict[str, Tensor], model: nn.Module,
             optimizer: torch.optim.Optimizer) -> None:
    ours = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in ours.items()}
    for name, p in model.named_parameters():  # no moments before the first update of a parameter
        moments = {"exp_avg": p.shape, "exp_avg_sq": p.shape, "step": torch.Size()}
        shapes |= {key: shape for moment, shape in moments.items()
                   if (key := f"optimizer.{name}.{moment}") in tensors}
    wrong = [name for name in shapes.keys() | tensors.keys()
             if name not in shapes or name not in tensors or shapes[name] != tensors[name].shape]
    if wrong:
        raise UserError(f"checkpoint {path} is of another model: {', '.join(sorted(wrong)[:3])} differ")
    for name, tensor in ours.items():
        tensor.copy_(tensors[name])
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        state = {key[len(prefix):]: value for key, value in tensors.items()
                 if key.startswith(prefix) and "." not in key[len(prefix):]}
        if state:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def seal(state: dict) -> str:
    """The sha256 of the content of state.json, so that damage to it is detected, too."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
