"""Counted FLOPs: those that torch counts, those of the papers, and those of a step written out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import minibert.model.mobilebert
from minibert.bench.flops import encoder_flops, matrix_peak, useful_flops
from minibert.common.runtime import Runtime
from minibert.hub.onnx_export import Padded
from minibert.model.attention import attend_one
from minibert.model.config import preset
from minibert.model.encoder import Encoder
from minibert.model.heads import build_encoder
from steps import MOBILE_KINDS as KINDS


def test_an_encoders_are_what_torch_counts(tiny_config):
    padded = Padded(Encoder(tiny_config).eval())  # torch does not count its fused attention, but this one
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        padded(*torch.ones(3, 1, 20, dtype=torch.int64))
    assert counted.get_total_flops() == encoder_flops(tiny_config, 20)


@pytest.mark.parametrize("config", KINDS)
def test_a_mobileberts_are_what_torch_counts(config, monkeypatch, random_batch):
    # torch does not count its fused attention; of one sequence it is this
    monkeypatch.setattr(minibert.model.mobilebert, "attend",
                        lambda q, k, v, batch, dropout: attend_one(q, k, v))
    encoder = build_encoder(config).eval()
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        encoder(random_batch([20]))
    assert counted.get_total_flops() == encoder_flops(config, 20)


def test_a_step_by_hand():
    config, lengths = preset("bert-L2-H128"), np.array([9, 128, 40])
    n, squares = lengths.sum(), (lengths.astype(float) ** 2).sum()
    inside = 2 * (n * 2 * 12 * 128 * 128 + 4 * 128 * squares)
    head = n * 2 * (128 * 128 + 128 * 30522)
    assert useful_flops(config, config, lengths) == pytest.approx(4 * (inside + head))
    assert useful_flops(config, config, lengths, "tinybert") == pytest.approx(4 * inside)
    assert useful_flops(config, config, lengths, "mlm") == pytest.approx(3 * (inside + 0.15 * head))


def test_the_peak_is_that_of_the_best_product(monkeypatch):
    ticks = iter([0.0, 2.0, 3.0, 3.5, *range(10, 26)])  # products of 2 s, of half a second, then of 1 s each
    monkeypatch.setattr("minibert.bench.flops.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.zeros(1, 1))
    assert matrix_peak(Runtime(torch.device("cpu"), "fp32")) == 2 * 2048**3 / 0.5
