"""Students start as their teachers: layer maps, copies, folded token types."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from minibert.common.errors import UserError
from minibert.distill.students import (check_fit, counterparts, distilbert_of, from_scratch, layer_map,
                                       student_from, with_dropout, with_new_mlm_head)
from minibert.distill.tinybert import InnerWeights
from minibert.model.config import PRESETS
from minibert.model.encoder import init_weights
from minibert.model.heads import MaskedLM


@pytest.mark.parametrize("teacher, student, expected", [
    (12, 6, [0, 2, 4, 7, 9, 11]), (6, 3, [0, 2, 5]), (12, 4, [0, 4, 7, 11]),
    (4, 2, [0, 3]), (3, 3, [0, 1, 2]), (5, 1, [0])])
def test_layer_maps(teacher, student, expected):
    assert layer_map(teacher, student) == expected


@pytest.mark.parametrize("changed, expected", [
    ({}, (1, 3, 6)),  # those it started as
    ({"layer_map": "1,2,4"}, (2, 3, 5)),
    ({"init": "random"}, (2, 4, 6)),  # uniform
    ({"student": "some/folder"}, (2, 4, 6)),
    ({"student": "tinybert-4"}, (1, 3, 6)),
    ({"method": "mobilebert"}, (2, 4, 6)),
    ({"method": "tinybert"}, (4, 5, 6)),  # those it imitates
    ({"student": "some/folder", "layers": 7}, None)])
def test_layers_whose_attention_is_compared(changed, expected, tiny_config):
    options = SimpleNamespace(**{"method": "distilbert", "student": None, "init": "teacher",
                                 "layer_map": None, "layers": 3} | changed)
    student, teacher = replace(tiny_config, layers=options.layers), replace(tiny_config, layers=6)
    assert counterparts(options, InnerWeights(layers=(4, 5, 6)), student, teacher) == expected


def test_a_student_deeper_than_its_teacher_is_refused():
    with pytest.raises(UserError, match="7 layers"):
        layer_map(6, 7)


def test_distilbert_of_bert_base_is_the_preset():
    assert distilbert_of(PRESETS["bert-base"]) == PRESETS["distilbert"]


@pytest.fixture
def teacher(tiny_config):
    model = init_weights(MaskedLM(replace(tiny_config, layers=4)))
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.eval()


def test_everything_is_copied_from_the_chosen_layers(teacher):
    student = student_from(teacher, distilbert_of(teacher.config), [0, 3])
    ours, theirs = student.state_dict(), teacher.state_dict()
    for name, tensor in ours.items():
        source = name.replace("layers.1.", "layers.3.")
        if name != "encoder.position.weight":
            assert torch.equal(tensor, theirs[source]), name
            assert tensor.data_ptr() != theirs[source].data_ptr(), f"{name} is shared with the teacher"


def test_folded_token_types_give_the_teachers_embeddings(teacher, random_batch):
    batch = random_batch([5, 9, 3])._replace(segments=torch.zeros(17, dtype=torch.int64))
    config = distilbert_of(teacher.config)
    folded = student_from(teacher, config, [0, 3]).eval()
    dropped = student_from(teacher, config, [0, 3], fold_segments=False).eval()
    expected = teacher.encoder.embed(batch)
    assert (folded.encoder.embed(batch) - expected).abs().max() < 1e-5
    assert (dropped.encoder.embed(batch) - expected).abs().max() > 0.1
    assert torch.equal(dropped.encoder.position.weight, teacher.encoder.position.weight)


def test_all_layers_and_types_make_the_teacher_again(teacher, random_batch):
    student = student_from(teacher, teacher.config, [0, 1, 2, 3]).eval()
    batch = random_batch([5, 9, 3])
    assert torch.equal(student(batch), teacher(batch))


@pytest.mark.parametrize("change, word", [({"vocab_size": 61}, "vocabulary"), ({"hidden_size": 48}, "width"),
                                          ({"max_positions": 16}, "positions")])
def test_misfits_are_named(teacher, change, word):
    with pytest.raises(UserError, match=word):
        check_fit(replace(distilbert_of(teacher.config), **change), teacher.config)


def test_layers_of_another_shape_are_not_copied(teacher):
    with pytest.raises(UserError, match="intermediate_size"):
        student_from(teacher, replace(distilbert_of(teacher.config), intermediate_size=44), [0, 3])
    with pytest.raises(UserError, match="layer map"):
        student_from(teacher, distilbert_of(teacher.config), [0, 9])


def test_new_head_around_an_encoder(teacher):
    model = with_new_mlm_head(teacher.encoder, seed=1)
    assert torch.equal(model.encoder.layers[2].up.weight, teacher.encoder.layers[2].up.weight)
    assert not torch.equal(model.mlm.dense.weight, teacher.mlm.dense.weight)


def test_replacing_dropout_reaches_every_module(tiny_config):
    model = with_dropout(MaskedLM(tiny_config), dropout=0.0)
    assert all(m.config == replace(tiny_config, dropout=0.0) for m in model.modules() if hasattr(m, "config"))


def test_from_scratch_depends_on_the_seed_alone(tiny_config):
    a, b, c = (from_scratch(tiny_config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["encoder.word.weight"], c["encoder.word.weight"])
