"""Students start as their teachers: layer maps, copies, folded token types."""

from dataclasses import replace

import pytest
import torch

from minibert.common.errors import UserError
from minibert.distill.distilbert import DistilBERTWeights, fit_distilbert
from minibert.distill.students import copied_layers, distilbert_of, make_student, preset_of, random_weights
from minibert.model.config import PRESETS
from minibert.model.heads import Classifier, MaskedLM, PreTraining, Span, build_encoder, encoder_of
from minibert.model.init import init_weights
from minibert.training.models import (equal_token_types, keep_token_types_equal, with_dropout,
                                      with_new_mlm_head)
from steps import TINY_MOBILE


@pytest.mark.parametrize("teacher, student, expected", [
    (12, 6, [0, 2, 4, 7, 9, 11]), (6, 3, [0, 2, 5]), (12, 4, [0, 4, 7, 11]),
    (4, 2, [0, 3]), (3, 3, [0, 1, 2]), (5, 1, [0])])
def test_layer_maps(teacher, student, expected):
    assert copied_layers(student, teacher) == expected


def test_a_student_deeper_than_its_teacher_is_refused():
    with pytest.raises(UserError, match="7 layers"):
        copied_layers(7, 6)


def test_distilbert_of_bert_base_is_the_preset():
    assert distilbert_of(PRESETS["bert-base"]) == PRESETS["distilbert"]


@pytest.fixture
def teacher(tiny_config):
    model = init_weights(MaskedLM(replace(tiny_config, layers=4)))
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.eval()


def test_everything_is_copied_from_the_chosen_layers(teacher):
    student = make_student(teacher, distilbert_of(teacher.config))
    ours, theirs = student.state_dict(), teacher.state_dict()
    for name, tensor in ours.items():
        source = name.replace("layers.1.", "layers.3.")
        if name != "encoder.position.weight":
            assert torch.equal(tensor, theirs[source]), name
            assert tensor.data_ptr() != theirs[source].data_ptr(), f"{name} is shared with the teacher"


def test_folded_token_types_give_the_teachers_embeddings(teacher, random_batch):
    batch = random_batch([5, 9, 3])._replace(segments=torch.zeros(17, dtype=torch.int64))
    config = distilbert_of(teacher.config)
    folded = make_student(teacher, config)
    dropped = make_student(teacher, config, fold_segments=False)
    expected = teacher.encoder.embed(batch)
    assert (folded.encoder.embed(batch) - expected).abs().max() < 1e-5
    assert (dropped.encoder.embed(batch) - expected).abs().max() > 0.1
    assert torch.equal(dropped.encoder.position.weight, teacher.encoder.position.weight)


def test_all_layers_and_types_make_the_teacher_again(teacher, random_batch):
    student = make_student(teacher, layers=4)
    batch = random_batch([5, 9, 3])
    assert torch.equal(student(batch), teacher(batch))


@pytest.mark.parametrize("change, word", [({"vocab_size": 61}, "vocabulary"), ({"hidden_size": 48}, "width"),
                                          ({"max_positions": 16}, "positions")])
def test_misfits_are_named(teacher, change, word):
    with pytest.raises(UserError, match=word):
        fit_distilbert(replace(distilbert_of(teacher.config), **change), teacher.config, DistilBERTWeights())
    with pytest.raises(UserError, match=word):
        make_student(teacher, replace(distilbert_of(teacher.config), **change))


def test_layers_of_another_shape_are_not_copied(teacher):
    with pytest.raises(UserError, match="intermediate_size"):
        make_student(teacher, replace(distilbert_of(teacher.config), intermediate_size=44))
    with pytest.raises(UserError, match="layer map"):
        make_student(teacher, distilbert_of(teacher.config), layer_map=[0, 9])


def test_new_head_around_an_encoder(teacher):
    model = with_new_mlm_head(teacher.encoder, seed=1)
    assert torch.equal(model.encoder.layers[2].up.weight, teacher.encoder.layers[2].up.weight)
    assert not torch.equal(model.mlm.dense.weight, teacher.mlm.dense.weight)


def test_replacing_dropout_reaches_every_module(tiny_config):
    model = with_dropout(MaskedLM(tiny_config), dropout=0.0)
    assert all(m.config == replace(tiny_config, dropout=0.0) for m in model.modules() if hasattr(m, "config"))


def test_random_weights_depend_on_the_seed_alone(tiny_config):
    a, b, c = (random_weights(MaskedLM(tiny_config), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["encoder.word.weight"], c["encoder.word.weight"])
    assert torch.equal(a["encoder.segment.weight"][0], a["encoder.segment.weight"][1])


# ---------------------------------------------------------------- any head, any architecture

HEADS = {"mlm": MaskedLM, "pretraining": PreTraining, "classification": Classifier, "span": Span,
         "encoder": lambda config: build_encoder(config, pooler=True)}


def shapes(tiny_config):
    bert = replace(tiny_config, layers=4, labels=("no", "maybe", "yes"))
    return {"bert": bert, "distilbert": replace(bert, architecture="distilbert", segments=0),
            "mobilebert": replace(TINY_MOBILE, layers=4, labels=("no", "maybe", "yes"))}


@pytest.mark.parametrize("architecture, head", [
    (architecture, head) for architecture in ("bert", "distilbert", "mobilebert") for head in HEADS
    if (architecture, head) != ("distilbert", "pretraining")])  # it has no next-sentence head
def test_a_student_of_half_the_layers_keeps_head_and_mode(architecture, head, tiny_config, random_batch):
    teacher = init_weights(HEADS[head](shapes(tiny_config)[architecture]))
    for p in teacher.parameters():
        p.data += 0.1 * torch.randn_like(p)
    for training in (True, False):
        student = make_student(teacher.train(training))
        assert student.training == training and all(p.requires_grad for p in student.parameters())
    assert type(student) is type(teacher) and student.config == replace(teacher.config, layers=2)
    theirs = teacher.state_dict()
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, theirs[name.replace("layers.1.", "layers.3.")]), name
    # the outputs are those of the teacher without its two layers in the middle
    layers = encoder_of(teacher).layers
    encoder_of(teacher).layers = torch.nn.ModuleList([layers[0], layers[3]])
    batch = random_batch([5, 9, 3])
    ours, expected = student(batch), teacher(batch)
    if head == "pretraining":
        ours, expected = torch.cat([x.flatten() for x in ours]), torch.cat([x.flatten() for x in expected])
    assert torch.equal(ours, expected)


def test_a_map_says_how_many_layers_and_which(teacher):
    student = make_student(teacher, layer_map=(1, 1, 2))
    assert student.config.layers == 3
    assert torch.equal(student.encoder.layers[1].up.weight, teacher.encoder.layers[1].up.weight)


def test_a_preset_and_any_width_start_at_random(teacher):
    student = make_student(teacher, "tinybert-4", layers=3, init="random", seed=5)
    assert type(student) is MaskedLM and student.config == preset_of("tinybert-4", teacher.config, 3)
    assert (student.config.hidden_size, student.config.vocab_size) == (312, teacher.config.vocab_size)
    again = make_student(teacher, "tinybert-4", layers=3, init="random", seed=5)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters()))
    with pytest.raises(UserError, match="width 312 against"):
        make_student(teacher, "tinybert-4")
    with pytest.raises(UserError, match="init 'copied' is not known: teacher, embeddings, random"):
        make_student(teacher, init="copied")


def test_a_classifier_of_another_kind_is_not_copied(tiny_config):
    """DistilBERT's classifier reads [CLS] through a layer of its own."""
    teacher = init_weights(Classifier(replace(tiny_config, layers=4)))
    with pytest.raises(UserError, match="the teacher has no pre_classifier"):
        make_student(teacher, distilbert_of(teacher.config))


def test_token_types_that_start_equal_stay_equal(teacher):
    student = make_student(teacher, layers=2, init="random")
    rows = equal_token_types(student.encoder)
    assert rows == [1] and equal_token_types(teacher.encoder) == []
    with torch.no_grad():
        student.encoder.segment.weight[0] += 1.0
        student.encoder.segment.weight[1] *= 0.9  # as by weight decay
    keep_token_types_equal(student.encoder, rows)
    assert equal_token_types(student.encoder) == [1]
    distilbert = make_student(teacher, distilbert_of(teacher.config))
    assert equal_token_types(distilbert.encoder) == []


def test_a_preset_has_the_labels_of_its_teacher():
    teacher = replace(PRESETS["tinybert-4"], labels=("no", "yes", "maybe"))
    assert preset_of("tinybert-4", teacher).labels == teacher.labels
