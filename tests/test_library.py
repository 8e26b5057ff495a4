"""The library without the scripts: a student and its loss in ten lines of Python, for any method."""

from dataclasses import replace

import pytest
import torch

import minibert
from minibert.data.tokenizer import train_tokenizer
from minibert.distill.embedding import SentenceStudent
from minibert.distill.methods import METHODS, terms_of
from minibert.distill.tinybert import TinyBERTStudent
from minibert.model.batch import IGNORE, Step
from minibert.model.config import PRESETS
from minibert.model.heads import Classifier, MaskedLM
from minibert.model.init import init_weights
from steps import counts_of, loss_of

TEXTS = ["the old model teaches the new student", "a student learns",
         "it reads words and masks, and then writes"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, 60)


def teacher_of(method, tokenizer):
    """A random teacher of four layers that the method can learn from."""
    size = dict(vocab_size=tokenizer.vocab_size, layers=4, heads=2, max_positions=32, dropout=0.0)
    if method == "mobilebert":
        config = replace(PRESETS["ib-bert-small"], hidden_size=16, embedding_size=8, bottleneck_size=32,
                         intermediate_size=32, **size)
    else:
        config = minibert.Config(hidden_size=16, intermediate_size=32, **size)
    torch.manual_seed(0)
    teacher = init_weights(MaskedLM(config))
    for p in teacher.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return teacher.eval()


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_any_method_in_ten_lines(method, tokenizer, tmp_path):
    teacher = teacher_of(method, tokenizer)
    if method == "mobilebert":
        shape = METHODS[method].shape(teacher.config)
        student = minibert.make_student(teacher, shape, init="embeddings").train()
    else:
        student = minibert.make_student(teacher, layers=2).train()
    for p in student.parameters():
        p.data += 0.1 * torch.randn_like(p)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    batch = minibert.masked_batch(tokenizer, TEXTS, seed=1)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss, terms = minibert.distillation_loss(method, student, teacher, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    weights = METHODS[method].weights()
    weighed = {name for name in terms_of(method) if getattr(weights, name)}
    assert losses[1] < losses[0] and weighed <= set(terms) <= {*terms_of(method), "accuracy"}
    expected = sum(getattr(weights, name) * terms[name] for name in weighed)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    minibert.save(student, tmp_path / "student", tokenizer)
    again = minibert.load(tmp_path / "student")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), student.parameters(), strict=True))


def test_a_student_of_another_width_and_its_projections(tokenizer):
    """TinyBERT's, whose matrices are trained with the student."""
    teacher = teacher_of("tinybert", tokenizer)
    student = minibert.make_student(teacher, minibert.Config(
        vocab_size=tokenizer.vocab_size, hidden_size=8, layers=2, heads=2, intermediate_size=12,
        max_positions=32), init="random")
    batch = minibert.masked_batch(tokenizer, TEXTS)
    with pytest.raises(minibert.UserError, match="8 wide cannot be compared with 16 without a projection"):
        minibert.distillation_loss("tinybert", student, teacher, batch)
    trained = TinyBERTStudent(student.encoder, teacher.config)
    loss, terms = minibert.distillation_loss("tinybert", trained, teacher, batch, attention=0.0)
    loss.backward()
    assert set(terms) == {"embedding", "hidden"} and trained.projections[1].weight.grad.abs().sum() > 0


def test_the_loss_of_a_batch_is_that_of_a_step_of_it(tokenizer):
    teacher = teacher_of("distilbert", tokenizer)
    student = minibert.make_student(teacher, layer_map=(0, 3))
    batch = minibert.masked_batch(tokenizer, TEXTS, share=0.3)
    loss, terms = minibert.distillation_loss("distilbert", student, teacher, batch, cosine=0.0,
                                             temperature=3.0)
    step = Step([batch], len(batch.labels), int((batch.labels != IGNORE).sum()), len(TEXTS))
    weights = METHODS["distilbert"].weights(cosine=0.0, temperature=3.0)
    expected, sums = loss_of("distilbert", student, teacher, step, weights)(batch)
    assert loss.item() == expected.item()
    assert terms["kl"] == sums["kl"].item() / counts_of("distilbert", step)["kl"]


def test_a_batch_of_texts(tokenizer):
    batch = minibert.masked_batch(tokenizer, TEXTS, share=0.3)
    lengths = [len(ids) for ids in tokenizer.encode(TEXTS)[0]]
    assert batch.batch.lengths.tolist() == sorted(lengths, reverse=True)
    rows = batch.labels != IGNORE
    assert torch.equal(rows.nonzero().squeeze(1), batch.masked) and 0 < rows.sum() < len(rows)
    original = batch.batch.ids.where(~rows, batch.labels)
    expected = sorted(map(tuple, tokenizer.encode(TEXTS)[0]), key=len, reverse=True)
    assert original.tolist() == [id for ids in expected for id in ids]
    other = minibert.masked_batch(tokenizer, TEXTS, share=0.3, seed=1)
    assert not torch.equal(other.batch.ids, batch.batch.ids)
    assert minibert.masked_batch(tokenizer, TEXTS, max_length=5).batch.lengths.tolist() == [5, 5, 5]
    for texts, more, match in (([], {}, "a list of texts"), (TEXTS[0], {}, "a list of texts"),
                               (TEXTS, {"selection": "smoothed"}, "not one of bert")):
        with pytest.raises(minibert.UserError, match=match):
            minibert.masked_batch(tokenizer, texts, **more)


def test_unknown_methods_and_weights_of_nothing_are_refused(tokenizer):
    teacher = teacher_of("mlm", tokenizer)
    batch = minibert.masked_batch(tokenizer, TEXTS)
    with pytest.raises(minibert.UserError, match="'bert' is not known; there are: distilbert, mlm, tinybert"):
        minibert.distillation_loss("bert", teacher, teacher, batch)
    with pytest.raises(minibert.UserError, match="every term of mlm has weight 0"):
        minibert.distillation_loss("mlm", teacher, None, batch, mlm=0.0)


def test_models_that_do_not_fit_the_method_are_refused(tokenizer):
    """Each case ended with a traceback or with a wrong loss in silence before the models were checked."""
    teacher, batch = teacher_of("distilbert", tokenizer), minibert.masked_batch(tokenizer, TEXTS)
    tuned = Classifier(teacher.config)
    narrow = minibert.make_student(teacher, replace(teacher.config, hidden_size=8, intermediate_size=12),
                                   init="random")
    for method, student, other, match in (
            ("distilbert", teacher, tuned, "with an MLM head, and this teacher is of the class Classifier"),
            ("mobilebert", tuned, teacher, "with an MLM head, and this student is of the class Classifier"),
            ("mlm", teacher.encoder, None, "with an MLM head, and this student is of the class Encoder"),
            ("minilm", teacher, None, "minilm needs a teacher"),
            ("distilbert", narrow, teacher, "width 8 against 16"),
            ("embedding", narrow, teacher, "vectors have 8 numbers and the teacher's 16: train a Sentence")):
        with pytest.raises(minibert.UserError, match=match):
            minibert.distillation_loss(method, student, other, batch)
    wrapped = SentenceStudent(narrow.encoder, teacher)  # what the last message says
    assert minibert.distillation_loss("embedding", wrapped, teacher, batch)[0].isfinite()
    assert minibert.distillation_loss("mlm", teacher, tuned, batch)[0].isfinite()  # reads no teacher
