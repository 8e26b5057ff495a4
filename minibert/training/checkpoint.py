"""Saves and loads checkpoints. A checkpoint is a file `step-N.safetensors` with the whole state of a run
after N steps. Everything that is not a tensor is JSON in the metadata of the file. The file is written under
a temporary name, flushed to the disk and then renamed. So a file `step-N.safetensors` is always complete,
even if the process was killed while it wrote.
"""

import json
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from minibert.common.disk import disk_errors, fsync
from minibert.common.errors import UserError
from minibert.hub.weight_files import write_tensors


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer,
                    extra: dict) -> None:
    """Writes `folder/step-N.safetensors`, where N is `step`, the number of finished steps. Of the older
    checkpoints, only the newest is kept. The tensors of the model are named `model.*`. The optimiser's
    tensors for the parameter NAME are named `optimizer.NAME.exp_avg`, `optimizer.NAME.exp_avg_sq` and, with
    AdamW, `optimizer.NAME.step`. The metadata has the step and the entries of `extra`.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    target = folder / f"step-{step}.safetensors"
    partial = folder / f"step-{step}.partial"
    with disk_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            write_tensors(partial, tensors, {"state": json.dumps({"step": step, **extra})})
            os.replace(partial, target)
        finally:  # also removes unfinished files of killed processes
            for unfinished in folder.glob("*.partial"):
                unfinished.unlink()
        fsync(folder)
        # Checkpoints of later steps are removed, because they are damaged. Otherwise the run would have been
        # resumed from one of them.
        found = checkpoints(folder)
        kept = [path for n, path in found if n <= step][:2]
        for _, path in found:
            if path not in kept:
                path.unlink()


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Returns a pair (step, path) for each checkpoint file in a folder, the latest step first."""
    found = [(int(name[1]), path) for path in folder.glob("step-*")
             if (name := re.fullmatch(r"step-([0-9]+)\.safetensors", path.name))]
    return sorted(found, reverse=True)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
                    report=print, scaler: torch.amp.GradScaler | None = None) -> dict | None:
    """Loads the newest checkpoint that is not damaged into the model, the optimiser and the scaler.

    Returns a dict with the step and the entries of `extra`, or None if the folder has no checkpoint. Raises
    `UserError` if all checkpoints are damaged or of an earlier version of minibert, or if the loaded
    checkpoint belongs to another model.
    """
    found = checkpoints(folder)
    for _, path in found:
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, ValueError, SafetensorError) as error:
            report(f"checkpoint {path} is damaged ({error}); trying the one before it")
            continue
        _restore(path, tensors, model, optimizer)
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        return state
    if found:
        raise UserError(f"every checkpoint in {folder} is damaged; remove the folder to start anew")
    if any(path.is_dir() for path in folder.glob("step-*")):
        raise UserError(f"the checkpoints in {folder} are of an earlier version of minibert and cannot be "
                        "read; resume the run with that version, or start a new run with another --out")
    return None


def _restore(path: Path, tensors: dict[str, Tensor], model: nn.Module,
             optimizer: torch.optim.Optimizer) -> None:
    try:
        model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()
                               if name.startswith("model.")})
    except RuntimeError as error:
        raise UserError(f"checkpoint {path} is of another model ({error})") from None
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        # a parameter that was never updated has no optimiser state in the file
        moments = {key: tensors[f"optimizer.{name}.{key}"].to(parameter.device)
                   for key in ("exp_avg", "exp_avg_sq", "step") if f"optimizer.{name}.{key}" in tensors}
        if moments:
            optimizer.state[parameter] = moments
