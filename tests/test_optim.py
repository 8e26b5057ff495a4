"""Learning rate, parameter groups, AdamW against its formula."""

import pytest
import torch

from minibert.heads import MaskedLM
from minibert.optim import adamw, learning_rate, warmup_steps


def test_schedule_at_its_corners():
    rate = lambda step: learning_rate(step, steps=100, peak=1.0, warmup=10)  # noqa: E731
    assert [rate(0), rate(4), rate(9), rate(10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert [rate(55), rate(99)] == pytest.approx([0.5, 1 / 90])
    assert learning_rate(0, 1, 1.0, 0) == 1.0
    assert warmup_steps(0.05, 101) == 6


def test_every_parameter_is_in_one_group_and_norms_and_biases_do_not_decay(tiny_config):
    model = MaskedLM(tiny_config)
    optimizer = adamw(model, (0.9, 0.98), 1e-6, 0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert sorted(decayed + plain) == sorted(names.values())
    assert "mlm.bias" in plain and "encoder.layers.0.attention_norm.weight" in plain
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)


def test_two_steps_of_adamw_by_hand():
    model = torch.nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(2.0)
    optimizer = adamw(model, (0.9, 0.98), 1e-6, 0.1)
    w, m, v = 2.0, 0.0, 0.0
    for t, g in ((1, 3.0), (2, -1.0)):
        model.weight.grad = torch.full((1, 1), g).double()
        optimizer.param_groups[0]["lr"] = 0.01
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        w = w - 0.01 * 0.1 * w - 0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.98**t)) ** 0.5 + 1e-6)
        assert model.weight.item() == pytest.approx(w, rel=1e-12)
