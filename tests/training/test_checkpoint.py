"""Tests that checkpoints are complete, that damage is reported, and that the state is restored to the bit."""

import os

import pytest
import torch
from safetensors import SafetensorError

from minibert.common.errors import UserError
from minibert.model.heads import MaskedLM
from minibert.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from minibert.training.optim import adamw


def trained(tiny_config, steps=2):
    model = MaskedLM(tiny_config)
    optimizer = adamw(model, (0.9, 0.98), 1e-6, 0.01)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01
        optimizer.step()
    return model, optimizer


def test_weights_and_optimiser_come_back_to_the_bit(tiny_config, tmp_path):
    model, optimizer = trained(tiny_config)
    save_checkpoint(tmp_path, 2, model, optimizer, {"tokens": 99})
    other, other_optimizer = trained(tiny_config, steps=1)
    state = load_checkpoint(tmp_path, other, other_optimizer)
    assert state["step"] == 2 and state["tokens"] == 99
    for _ in range(2):  # the same now, and after one more step
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
        for a, b in zip(model.parameters(), other.parameters()):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for o in (optimizer, other_optimizer):
            o.param_groups[0]["lr"] = o.param_groups[1]["lr"] = 0.01
            o.step()


def test_the_one_before_is_kept_and_older_ones_go(tiny_config, tmp_path):
    model, optimizer = trained(tiny_config)
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, model, optimizer, {})
    assert [step for step, _ in checkpoints(tmp_path)] == [15, 10]


def test_a_checkpoint_of_an_earlier_version_is_an_error(tiny_config, tmp_path):
    """Such a checkpoint was a folder. Without this error the run would start again at step 0."""
    model, optimizer = trained(tiny_config)
    assert load_checkpoint(tmp_path / "none", model, optimizer) is None
    (tmp_path / "step-2").mkdir()
    with pytest.raises(UserError, match="are of an earlier version of minibert.*another --out"):
        load_checkpoint(tmp_path, model, optimizer)
    save_checkpoint(tmp_path, 3, model, optimizer, {})
    assert load_checkpoint(tmp_path, model, optimizer)["step"] == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "header"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tiny_config, tmp_path, damage):
    model, optimizer = trained(tiny_config)
    for step in (5, 10):
        save_checkpoint(tmp_path, step, model, optimizer, {})
    newest = tmp_path / "step-10.safetensors"
    if damage == "header":
        newest.write_bytes(newest.read_bytes().replace(b"exp_avg", b"\xff\xff\xff_avg"))
    else:
        os.truncate(newest, 1000 if damage == "cut" else 0)
    said = []
    assert load_checkpoint(tmp_path, model, optimizer, said.append)["step"] == 5
    assert len(said) == 1 and "step-10" in said[0]


def test_a_damaged_one_is_not_counted_among_those_kept(tiny_config, tmp_path):
    """The run resumes from an older checkpoint. Two complete checkpoints are kept."""
    model, optimizer = trained(tiny_config)
    for step in (5, 10, 6):
        save_checkpoint(tmp_path, step, model, optimizer, {})
    assert [step for step, _ in checkpoints(tmp_path)] == [6, 5]


def test_all_damaged_or_foreign_is_an_error(tiny_config, tmp_path):
    model, optimizer = trained(tiny_config)
    save_checkpoint(tmp_path, 5, model, optimizer, {})
    other = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="another model"):
        load_checkpoint(tmp_path, other, adamw(other, (0.9, 0.98), 1e-6, 0))
    os.truncate(tmp_path / "step-5.safetensors", 50)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path, model, optimizer, lambda *_: None)


def test_nothing_to_load(tiny_config, tmp_path):
    assert load_checkpoint(tmp_path / "none", *trained(tiny_config)) is None


def test_a_kill_inside_the_writing_leaves_the_one_before(tiny_config, tmp_path, monkeypatch):
    model, optimizer = trained(tiny_config)
    save_checkpoint(tmp_path, 5, model, optimizer, {})

    def killed(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr("minibert.training.checkpoint.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 10, model, optimizer, {})
    monkeypatch.undo()
    assert [step for step, _ in checkpoints(tmp_path)] == [5]
    (tmp_path / "step-7.partial").touch()
    save_checkpoint(tmp_path, 10, model, optimizer, {})
    assert not list(tmp_path.glob("*.partial"))


def test_a_full_disk_is_one_sentence_and_leaves_the_one_before(tiny_config, tmp_path, monkeypatch):
    model, optimizer = trained(tiny_config)
    save_checkpoint(tmp_path, 5, model, optimizer, {})

    def full(tensors, path, metadata):  # what safetensors says on a disk that is
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    monkeypatch.setattr("minibert.hub.weight_files.save_file", full)
    with pytest.raises(UserError, match="disk is full.*step-10"):
        save_checkpoint(tmp_path, 10, model, optimizer, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-5.safetensors"]
