"""Tests of the models of a run: a frozen teacher in 16 bits."""

import torch

from minibert.common.runtime import Runtime
from minibert.model.heads import MaskedLM
from minibert.training.models import hold_frozen
from steps import CPU


def test_a_frozen_model_holds_its_matrices_in_16_bits(tiny_config, random_batch):
    model = MaskedLM(tiny_config)
    batch = random_batch([9, 5, 5])
    runtime = Runtime(torch.device("cpu"), "bf16")
    with torch.no_grad(), runtime.autocast():
        before = model.eval().encoder(batch)
        hold_frozen(model, runtime)
        after = model.encoder(batch)
    kept = {name.rsplit(".", 1)[0] for name, p in model.named_parameters()
            if p.dtype == torch.float32 and p.dim() == 2}
    assert kept == {"encoder.position", "encoder.segment"}
    assert not any(p.requires_grad for p in model.parameters())
    assert after.dtype == torch.float32  # hidden states are sums, and stay fp32
    # the word table's rounding, 2^-9, is all that is new
    assert (after - before).abs().max() < 0.03 * before.abs().max()


def test_a_frozen_model_is_left_alone_in_fp32(tiny_config):
    model = hold_frozen(MaskedLM(tiny_config), CPU)
    assert all(p.dtype == torch.float32 for p in model.parameters())
