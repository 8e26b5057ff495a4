"""Checkpoints: the whole state of a run (weights, optimiser, step) in safetensors and JSON.

A checkpoint is a folder `step-N`. It is written under another name, flushed to the disk and renamed. After
that, older checkpoints are removed, but the previous checkpoint is kept. So there is always a complete
checkpoint, even if the process is killed. `state.json` is written after the tensors. It has the size and the
hash of the file of the tensors, so a damaged file is found.
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
    """All tensors of a run by name. The names are `model.*`, and for each parameter `optimizer.*.exp_avg`,
    `optimizer.*.exp_avg_sq` and `optimizer.*.step`.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer,
                    extra: dict) -> None:
    """Writes `folder/step-N` after N finished steps and keeps the previous checkpoint.

    The entries of `extra` are added to state.json.
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
            # the disk may be full, so the unfinished folder is removed
            shutil.rmtree(partial, ignore_errors=True)
            raise
        # an earlier session wrote this step, and the run then resumed from an older checkpoint
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
        fsync(folder)
        for later, damaged in checkpoints(folder):
            # This checkpoint was damaged, and the run resumed from an older checkpoint. It must not be one of
            # the two that are kept.
            if later > step:
                shutil.rmtree(damaged)
        for _, old in checkpoints(folder)[2:]:
            shutil.rmtree(old)
        for left_over in folder.glob("*.partial"):
            shutil.rmtree(left_over)


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The complete checkpoints in a folder, as (step, path). The newest checkpoint is first."""
    found = [(int(path.name[5:]), path) for path in folder.glob("step-*")
             if path.name[5:].isdecimal() and path.is_dir()]
    return sorted(found, reverse=True)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
                    report=print, scaler: torch.amp.GradScaler | None = None) -> dict | None:
    """Loads the newest checkpoint that is not damaged into the model, the optimiser and the scaler.

    Returns its state.json, or None if there is no checkpoint. A damaged checkpoint is reported, and the
    previous one is used. Raises `UserError` if all checkpoints are damaged, or if a checkpoint belongs to
    another model.
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
    for name, p in model.named_parameters():  # a parameter has no moments before its first update
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
    """The sha256 of the content of state.json, With it, a damaged state.json is found."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
