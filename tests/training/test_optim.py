"""Tests that the learning rate, the parameter groups, AdamW and LAMB equal their formulas."""

import pytest
import torch

from minibert.model.heads import MaskedLM
from minibert.training.optim import adamw, lamb, learning_rate, parameter_groups, warmup_steps


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


def test_groups_by_part_hold_every_parameter_once(tiny_config):
    model = MaskedLM(tiny_config)
    groups = parameter_groups(model, 0.01, lambda name: 2 if ".layers.1." in name else 0)
    assert [(g["part"], g["weight_decay"], g["adapt"]) for g in groups] == [
        (0, 0.01, True), (0, 0.0, False), (2, 0.01, True), (2, 0.0, False)]
    assert sorted(map(id, sum((g["params"] for g in groups), []))) == sorted(map(id, model.parameters()))
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].startswith("encoder.layers.1.") for g in groups[2:] for p in g["params"]} == {True}


def test_three_steps_of_lamb_by_hand():
    """The expected values are computed with Python's floats. LAMB does not decay or adapt the second tensor.
    """
    model = torch.nn.Linear(2, 1).double()
    start = {"weight": [2.0, -1.0], "bias": [0.5]}
    for name, values in start.items():
        getattr(model, name).data.view(-1).copy_(torch.tensor(values))
    optimizer = lamb(model, (0.9, 0.999), 1e-6, 0.01)
    state = {name: [(w, 0.0, 0.0) for w in values] for name, values in start.items()}
    for gradients in ({"weight": [3.0, 0.1], "bias": [0.2]}, {"weight": [-1.0, 0.2], "bias": [-0.3]},
                      {"weight": [0.0, 0.0], "bias": [0.0]}):
        for name, gradient in gradients.items():
            p = getattr(model, name)
            p.grad = torch.tensor(gradient, dtype=torch.float64).view_as(p)
        for group in optimizer.param_groups:
            group["lr"] = 0.02
        optimizer.step()
        for name, gradient in gradients.items():
            decay = 0.01 if name == "weight" else 0.0
            moments = [(0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g)
                       for (_, m, v), g in zip(state[name], gradient)]
            update = [m / (v**0.5 + 1e-6) + decay * w for (m, v), (w, _, _) in zip(moments, state[name])]
            ratio = 1.0
            if name == "weight":
                ratio = sum(w * w for w, _, _ in state[name])**0.5 / sum(u * u for u in update)**0.5
            state[name] = [(w - 0.02 * ratio * u, m, v)
                           for (w, _, _), u, (m, v) in zip(state[name], update, moments)]
            assert getattr(model, name).view(-1).tolist() == pytest.approx([w for w, _, _ in state[name]],
                                                                           rel=1e-9)


def test_lamb_moves_a_tensor_of_zeros_and_leaves_one_without_gradient():
    model = torch.nn.Linear(2, 2)
    model.weight.data.zero_()
    before = model.bias.clone()
    optimizer = lamb(model, (0.9, 0.999), 1e-6, 0.01)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1
    model.weight.grad = torch.ones(2, 2)
    optimizer.step()
    m_over_root_v = 0.1 / (0.001**0.5 + 1e-6)
    assert model.weight.detach().flatten().tolist() == pytest.approx([-0.1 * m_over_root_v] * 4, rel=1e-4)
    assert torch.equal(model.bias, before) and set(optimizer.state) == {model.weight}
    model.weight.grad = torch.zeros(2, 2)
    optimizer.state.clear()
    model.weight.data.zero_()
    optimizer.step()  # nothing to go by: 0 / 0 nowhere
    assert not model.weight.any()
