"""MobileBERT's three schedules of knowledge transfer (Sun et al. 2020). The schedules follow summaries of
the paper, because the paper itself was not read.

In the transfer, a student layer learns the hidden states (feature maps) and the attention of the teacher
layer with the same number. In distillation, the student learns to predict masked tokens and to imitate the
teacher's predictions.

    akt (auxiliary)    one stage: each step has transfer in all layers, and also distillation
    jkt (joint)        a stage of transfer in all layers together, then a stage of distillation
    pkt (progressive)  a stage of transfer for each layer, the first layer first, then a stage of distillation

Part 0 of the student is everything outside its L layers (embeddings and head). Parts 1 to L are its layers.
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

# From the authors' code: 240,000 of 740,000 steps are for the transfer. In a stage of transfer, the learning
# rate is multiplied by 3 for the layers of this stage, and by 0.3 for the layers of the stages before it.
TRANSFER_SHARE = 24 / 74
IN_STAGE, AFTER_STAGE = 3.0, 0.3


class Stage(NamedTuple):
    """One stage of a schedule: the steps `first` to `last` - 1."""

    first: int
    last: int
    layers: tuple[int, ...]  # the layers with transfer, counted from 1
    distil: bool


def stages(schedule: str, steps: int, layers: int, transfer_share: float = TRANSFER_SHARE) -> list[Stage]:
    """Returns the stages of a run in order. Raises `UserError` if a stage would have no step."""
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
    """Returns the stage of a step (counted from 0)."""
    return next(stage for stage in plan if step < stage.last)


def stage_weights(stage: Stage, weights: MobileBERTWeights) -> MobileBERTWeights:
    """Returns the weights of the loss terms in a stage. In a stage without distillation, `mlm` and `kd` have
    the weight 0. The transfer terms are computed only for the layers of the stage.
    """
    weights = replace(weights, layers=stage.layers)
    return weights if stage.distil else replace(weights, mlm=0.0, kd=0.0)


def rates(stage: Stage, step: int, layers: int, warmup: float) -> list[float]:
    """Returns the factors by which the peak learning rate is multiplied at a step. The list has a factor for
    part 0 of the student, and then a factor for each layer.

    In a stage with distillation, all parts have the same factor. The factor rises linearly during the warm-up
    (the share `warmup` of the stage's steps), and then falls linearly to 0.

    In a stage with transfer only, the layers of the stage have a high factor. The layers before them have a
    low factor. All other parts have the factor 0, because they are frozen. The factors rise in about the
    first tenth of the stage, and then slowly fall by about a tenth.
    """
    length, done = stage.last - stage.first, step - stage.first
    if stage.distil:
        return [learning_rate(done, length, 1.0, warmup_steps(warmup, length))] * (layers + 1)
    # With `done` instead of `done + 1`, as in the authors' code, the first step would have the rate 0.
    progress = (done + 1) / length
    background = min(10 * progress, 0.9 + 0.1 * (1 - progress) ** 0.5)
    lowest, highest = stage.layers[0], stage.layers[-1]
    return [0.0] + [background * (AFTER_STAGE if layer < lowest else IN_STAGE if layer <= highest else 0.0)
                    for layer in range(1, layers + 1)]


def part_of(name: str) -> int:
    """Returns the number of the student's part to which the parameter `name` belongs."""
    layer = re.match(r"encoder\.layers\.(\d+)\.", name)
    return int(layer[1]) + 1 if layer else 0


def begin_stage(stage: Stage, step: int, student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Prepares the student and the optimiser for a stage. `step` is the first step of the stage, or the step
    at which a run is resumed.

    The parts that the stage does not train are frozen. They get no gradient, so they do not count in the
    gradient norm. At the first step of a stage with distillation, the optimiser's state is cleared, as in the
    authors' code.
    """
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(stage.distil or 0 < part_of(name) <= stage.layers[-1])
    if stage.distil and step == stage.first:
        optimizer.state.clear()
