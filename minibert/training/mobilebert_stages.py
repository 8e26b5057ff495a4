"""MobileBERT's three schedules of knowledge transfer (Sun et al. 2020, section 3.6), as functions of the
step. These functions give the stage of a step, the loss terms of a stage, and the learning rate of each part
of the student.

    akt  auxiliary    one stage: the transfer of all layers together with pre-training distillation
    jkt  joint        the transfer of all layers; then distillation
    pkt  progressive  the transfer of layer 1, 2 ... L, lower layers nearly frozen; then distillation

Part 0 of the student is everything outside its layers (embeddings and head). Parts 1 to L are the student's
layers.
"""

import re
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from minibert.common.errors import UserError
from minibert.distill.mobilebert import MobileBERTWeights
from minibert.training.optim import learning_rate, warmup_steps

SCHEDULES = ("akt", "jkt", "pkt")

# These numbers are those of the authors' code. 240,000 of its 740,000 steps are for the transfer. A layer has
# three times the learning rate in its own stage, and 0.3 times the learning rate in later stages.
TRANSFER_SHARE = 24 / 74
IN_STAGE, AFTER_STAGE = 3.0, 0.3


class Stage(NamedTuple):
    """One stage of a schedule: the steps `first` to `last` - 1."""

    first: int
    last: int
    layers: tuple[int, ...]  # the numbers of the transferred layers, from 1
    distil: bool  # whether the stage has pre-training distillation


def stages(schedule: str, steps: int, layers: int, transfer_share: float = TRANSFER_SHARE) -> list[Stage]:
    """The stages of a run in order. Together the stages have all steps of the run. Raises `UserError` if a
    stage would have no step.
    """
    every = tuple(range(1, layers + 1))
    if schedule == "akt":
        return [Stage(0, steps, every, True)]
    transfer = round(steps * transfer_share)
    groups = [every] if schedule == "jkt" else [(layer,) for layer in every]
    if not len(groups) <= transfer < steps:
        raise UserError(f"of {steps} steps, {transfer} are for the transfer; but with --schedule {schedule} "
                        f"each of its {len(groups)} stages and the distillation need at least one step: take "
                        "more steps or another --transfer-share")
    ends = [transfer * i // len(groups) for i in range(len(groups) + 1)]
    return [*(Stage(first, last, group, False) for first, last, group in zip(ends, ends[1:], groups)),
            Stage(transfer, steps, (), True)]


def stage_at(plan: list[Stage], step: int) -> Stage:
    """The stage of a step (from 0)."""
    return next(stage for stage in plan if step < stage.last)


def stage_weights(stage: Stage, weights: MobileBERTWeights) -> MobileBERTWeights:
    """The weights of the terms that the stage minimises."""
    weights = replace(weights, layers=stage.layers)
    return weights if stage.distil else replace(weights, mlm=0.0, kd=0.0)


def rates(stage: Stage, step: int, layers: int, warmup: float) -> list[float]:
    """The factors of the peak learning rate at a step. There are L + 1 factors, one for each part of the
    student.

    In a stage with distillation, all parts have the same rate. This rate rises linearly in the first part of
    the stage (`warmup` is its share) and then falls linearly to 0. In a stage with transfer only, the layers
    of the stage are trained, and the layers below them with a lower rate. The rate rises in the first tenth
    of the stage and then falls to 0.9 of its peak.
    """
    length, done = stage.last - stage.first, step - stage.first
    if stage.distil:
        return [learning_rate(done, length, 1.0, warmup_steps(warmup, length))] * (layers + 1)
    # note: the authors' code has `done` instead of `done + 1` in both formulas, so its first step has the
    # rate 0
    progress = (done + 1) / length
    background = min(10 * progress, 0.9 + 0.1 * (1 - progress) ** 0.5)
    lowest, highest = stage.layers[0], stage.layers[-1]
    return [0.0] + [background * (AFTER_STAGE if layer < lowest else IN_STAGE if layer <= highest else 0.0)
                    for layer in range(1, layers + 1)]


def part_of(name: str) -> int:
    """The number of the student's part that the parameter with this name belongs to."""
    layer = re.match(r"encoder\.layers\.(\d+)\.", name)
    return int(layer[1]) + 1 if layer else 0


def begin_stage(stage: Stage, step: int, student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Prepares the student and the optimiser for a stage. The loop calls it at the first step of a stage, and
    when a run is resumed.

    Only the parts that are trained in the stage get a gradient. The other parts are not in the norm that is
    clipped, and the optimiser keeps no moments of them. The optimiser's state is empty at the start of the
    distillation, because the authors' code starts a new run for it.
    """
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(stage.distil or 0 < part_of(name) <= stage.layers[-1])
    if stage.distil and step == stage.first:
        optimizer.state.clear()
