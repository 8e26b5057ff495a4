"""BERT-of-Theseus: groups, schedule and draws; the mixed model against its two ends; a run of finetune.py
against a loop written out; resuming; and every method from layers of the teacher, with text of all kinds.
"""

# ruff: noqa: F811  (fixtures of another file)

import json
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity import random_batch

import finetune
import minibert
from minibert.common.errors import UserError
from minibert.common.randomness import samples_of_step
from minibert.data.examples import draw, make_examples
from minibert.distill.students import make_student
from minibert.distill.task_kd import TaskWeights, task_loss
from minibert.distill.task_methods import TASK_METHODS
from minibert.distill.theseus import (layer_groups, mixed_logits, replace_rate, replaced_groups, theseus_loss,
                                      train_layers_only)
from minibert.hub.weight_files import read_safetensors
from minibert.model.heads import Classifier, Span
from minibert.model.init import init_weights
from minibert.tasks.options import Options, resolve
from steps import TINY_MOBILE
from test_finetune import folder, options, refused, rows, write_csv  # noqa: F401
from test_finetune_loop import models, random_classifier, read_reviews  # noqa: F401
from test_train import handlers  # noqa: F401  (an autouse fixture)

LENGTHS = [3, 11, 4, 9, 3, 12, 2, 7]


# ---- groups, schedule, draws

def test_groups_are_consecutive_and_as_equal_as_can_be():
    assert layer_groups(6, 12) == [range(i, i + 2) for i in range(0, 12, 2)]
    assert layer_groups(4, 6) == [range(0, 2), range(2, 3), range(3, 4), range(4, 6)]
    assert layer_groups(1, 3) == [range(0, 3)] and layer_groups(2, 2) == [range(0, 1), range(1, 2)]
    for ours in range(1, 13):
        groups = layer_groups(ours, 12)
        assert [i for group in groups for i in group] == list(range(12)) and all(groups)
    with pytest.raises(UserError, match="a student of 5 has more than its teacher of 4"):
        layer_groups(5, 4)


def test_the_rate_is_that_of_the_published_command():
    """--replacing_rate 0.3 --scheduler_linear_k 0.0006 in 15 epochs of MRPC, 115 steps each."""
    defaults = TASK_METHODS["theseus"].defaults
    rates = [replace_rate(t, 1725, defaults["replace_rate"], defaults["replace_until"]) for t in range(1725)]
    published = [min(1.0, 0.0006 * t + 0.3) for t in range(1725)]
    assert rates[0] == 0.3 and max(abs(a - b) for a, b in zip(rates, published)) < 0.01
    assert [replace_rate(t, 10, 0.5, 0.4) for t in range(6)] == pytest.approx([.5, .625, .75, .875, 1, 1])
    assert replace_rate(0, 10, 0.3, 0.0) == 1.0 and replace_rate(10, 10, 0.0, 1.0) == 1.0
    assert replace_rate(9, 10, 0.0, 1.0) == pytest.approx(0.9)


def test_draws_depend_on_seed_and_step_and_come_as_often_as_the_rate():
    drawn = np.array([replaced_groups(3, 0.3, 5, t) for t in range(4000)])
    assert np.abs(drawn.mean(0) - 0.3).max() < 0.03
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.05  # one group says nothing of another
    assert replaced_groups(3, 0.3, 5, 77) == drawn[77].tolist()
    assert (drawn[:50] != [replaced_groups(3, 0.3, 6, t) for t in range(50)]).any()
    for seed in range(99):
        assert all(replaced_groups(8, 1.0, seed, 0)) and not any(replaced_groups(8, 0.0, seed, 0))


# ---- the mixed model

SHAPES = {"bert": {}, "distilbert": {"architecture": "distilbert", "segments": 0}, "mobilebert": None}


def pair(tiny_config, architecture="bert", kind=Classifier):
    """A teacher of five layers, and a student out of it whose layers have moved, in float64."""
    config = (replace(TINY_MOBILE, layers=5) if architecture == "mobilebert" else
              replace(tiny_config, layers=5, vocab_size=60, **SHAPES[architecture]))
    teacher = init_weights(kind(replace(config, dropout=0.0, classifier_dropout=0.0)))
    for p in teacher.parameters():
        p.data += 0.1 * torch.randn_like(p)
    student = make_student(teacher, layers=2)
    for p in student.encoder.layers.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return train_layers_only(student.double()), teacher.double().requires_grad_(False)


def examples(kind=Classifier, segments=2):
    labels = [[0, 1]] * len(LENGTHS) if kind is Span else [0, 1, 1, 0, -1, 1, 0, 0]
    return make_examples(*random_batch(60, segments, LENGTHS), np.asarray(labels))


@pytest.mark.parametrize("kind", [Classifier, Span])
@pytest.mark.parametrize("architecture", SHAPES)
def test_all_replaced_is_the_student_and_none_is_the_teacher(tiny_config, architecture, kind):
    student, teacher = pair(tiny_config, architecture, kind)
    micro, = draw(examples(kind), {}, 0, len(LENGTHS), 3, 1000).micro_batches
    with torch.no_grad():
        assert torch.equal(mixed_logits(student, teacher, [True, True], micro), student(micro.batch))
        assert torch.equal(mixed_logits(student, teacher, [False, False], micro), teacher(micro.batch))
        x = teacher.encoder.trace(micro.batch, 2).hiddens[2]  # 5 to 2: layers 0 and 1, and 2 to 4
        x = student.encoder.layers[1](x, micro.batch)[0]
        mixed = mixed_logits(student, teacher, [False, True], micro)
        assert torch.equal(mixed, student.classify(x, micro.batch))
        assert (mixed - student(micro.batch)).abs().max() > 1e-3 < (mixed - teacher(micro.batch)).abs().max()


@pytest.mark.parametrize("micro_tokens, ranks", [(13, 1), (25, 2), (1, 1)])
def test_micro_batches_and_ranks_are_exact_and_only_layers_learn(tiny_config, micro_tokens, ranks):
    student, teacher = pair(tiny_config)

    def gradient(micro_tokens, ranks):
        student.zero_grad()
        total = 0.0
        for rank in range(ranks):
            drawn = draw(examples(), {}, 0, len(LENGTHS), 3, micro_tokens, rank, ranks)
            for micro in drawn.micro_batches:
                loss, sums = theseus_loss(student, teacher, [False, True], TaskWeights(),
                                          {"hard": drawn.labelled}, micro)
                loss.backward()
                total += loss.item()
                assert sums.keys() == {"hard"}
        return total, {name: p.grad for name, p in student.named_parameters() if p.grad is not None}

    (whole, expected), (total, found) = gradient(1000, 1), gradient(micro_tokens, ranks)
    assert total == pytest.approx(whole, rel=1e-6) and found.keys() == expected.keys()
    assert all(name.startswith("encoder.layers.1.") for name in found)
    for name in found:
        assert (found[name] - expected[name]).abs().max() < 1e-9, name
    assert all(p.grad is None for p in teacher.parameters())


def test_replaced_by_all_the_loss_is_that_of_plain_fine_tuning(tiny_config):
    student, teacher = pair(tiny_config)
    drawn = draw(examples(), {}, 0, len(LENGTHS), 3, 1000)
    counts = {"hard": drawn.labelled}
    ours, _ = theseus_loss(student, teacher, [True, True], TaskWeights(), counts, drawn.micro_batches[0])
    plain, _ = task_loss(student, TaskWeights(), [], counts, drawn.micro_batches[0])
    assert ours == plain


# ---- finetune.py

BATCH, LR, WARMUP, EPOCHS, SEED, RATE, UNTIL = 7, 2e-3, 0.3, 1.5, 5, 0.4, 0.6


def run_of(folder, models, out, *more, **changed):
    given = dict(model=None, teacher=models[1], method="theseus", layers=2, batch=BATCH, lr=LR, epochs=EPOCHS,
                 warmup=WARMUP, dropout=0, precision="fp32", seed=SEED,
                 **{"replace-rate": RATE, "replace-until": UNTIL, "micro-tokens": 40}) | changed
    return options(folder, "reviews.csv", out, *more, **given)


def test_a_run_is_the_loop_written_out(folder, models, tmp_path):
    """Two of four layers; each step's loss and norm; embeddings, pooler and head stay the teacher's."""
    finetune.main(run_of(folder, models, tmp_path / "run"))
    student, teacher = minibert.load(tmp_path / "run" / "student"), minibert.load(models[1])
    tokenizer, ((texts, labels), _) = minibert.load_tokenizer(models[1]), read_reviews(folder)
    trained = {name: p for name, p in student.named_parameters() if ".layers." in name}
    plain = lambda name: name.endswith("bias") or "norm" in name  # noqa: E731
    decaying, others = ([p for n, p in trained.items() if plain(n) == kind] for kind in (False, True))
    optimizer = torch.optim.AdamW([{"params": decaying}, {"params": others, "weight_decay": 0}],
                                  weight_decay=0.01, eps=1e-6)
    steps, found = math.ceil(EPOCHS * len(texts) / BATCH), rows(tmp_path / "run", SEED)
    warmup, seen = math.ceil(WARMUP * steps), set()
    assert len(found) == steps > 15
    for step in range(steps):
        rate = min(1, RATE + step * (1 - RATE) / math.ceil(UNTIL * steps))
        by_student = replaced_groups(2, rate, SEED, step)
        seen.add(tuple(by_student))
        loss = 0
        for i in samples_of_step(step, BATCH, len(texts), SEED):
            batch = minibert.pack(*tokenizer.encode([texts[i]]))
            x = teacher.encoder.embed(batch)
            for m in (0, 1):
                for layer in ([student.encoder.layers[m]] if by_student[m] else
                              [teacher.encoder.layers[2 * m], teacher.encoder.layers[2 * m + 1]]):
                    x = layer(x, batch)[0]
            loss -= F.log_softmax(teacher.classify(x, batch)[0], -1)[labels[i]] / BATCH
        optimizer.zero_grad(set_to_none=False)
        student.zero_grad(set_to_none=False)
        loss.backward() if any(by_student) else None
        for p in trained.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LR * min((step + 1) / warmup, (steps - step) / (steps - warmup))
        optimizer.step()
        for name in ("loss", "hard"):
            assert found[step][name] == pytest.approx(loss.item(), rel=1e-4), step
        assert found[step]["grad_norm"] == pytest.approx(norm.item(), rel=2e-3, abs=1e-6)
    assert len(seen) == 4 and all(by_student)
    kept, whole = minibert.load(tmp_path / "run" / "model").state_dict(), teacher.state_dict()
    for name, tensor in kept.items():
        assert ".layers." in name or torch.equal(tensor, whole[name]), name


def test_a_step_of_the_teacher_alone_changes_nothing_it_should_not(folder, models, tmp_path):
    """No layer of the student is drawn: there is no gradient, and the loss is the teacher's."""
    finetune.main(run_of(folder, models, tmp_path / "run", epochs=0.05, batch=120, warmup=0,
                         **{"replace-rate": 0, "replace-until": 1, "weight-decay": 0}))
    row, = rows(tmp_path / "run", SEED)
    assert row["grad_norm"] == 0 and not row["skipped"]
    kept, cut = (minibert.load(tmp_path / "run" / name).state_dict() for name in ("model", "student"))
    assert all(torch.equal(kept[name], cut[name]) for name in cut)


def test_resume_is_exact(folder, models, tmp_path, monkeypatch):
    """Stopped while layers are replaced at random, with dropout in both."""
    argv = lambda out, *more: run_of(folder, models, out, *more, dropout=0.1)  # noqa: E731
    finetune.main(argv(tmp_path / "a"))
    step, taken = finetune.accumulate, []

    def interrupted(*given):
        taken.append(1)
        if len(taken) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*given)

    monkeypatch.setattr(finetune, "accumulate", interrupted)
    with pytest.raises(SystemExit):
        finetune.main(argv(tmp_path / "b"))
    monkeypatch.setattr(finetune, "accumulate", step)
    finetune.main(argv(tmp_path / "b", "--resume"))
    a, b = ([{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows(tmp_path / run, SEED)]
            for run in "ab")
    assert a == b and len(a) > 15
    a, b = (minibert.load(tmp_path / run / "model").state_dict() for run in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_span_model_is_learned_by_theseus(folder, models, tmp_path):
    teacher = init_weights(Span(minibert.load(models[1]).config))
    minibert.save(teacher, tmp_path / "teacher", minibert.load_tokenizer(models[1]))
    finetune.main(options(folder, "squad", tmp_path / "run", model=None, teacher=tmp_path / "teacher",
                          method="theseus", layers=3, epochs=0.5))
    assert isinstance(minibert.load(tmp_path / "run" / "model"), Span)


@pytest.mark.parametrize("method", TASK_METHODS)
def test_every_method_learns_from_a_cut_start_with_any_text(folder, models, tmp_path, method):
    """Unlabelled text has the teacher's outputs as its targets; augmented text has labels."""
    write_csv(tmp_path / "more.csv", [("a", "the film was great", "yes"), ("b", "a dull book", "no")] * 8,
              ["id", "text", "label"])
    given = dict(model=None, teacher=models[1], method=method, layers=2, epochs=0.2)
    given |= {"intermediate-epochs": 0.2} if method == "tinybert" else {}
    terms = {"kd": {"hard", "soft"}, "pkd": {"hard", "soft", "patience"}, "tinybert": {"soft"},
             "theseus": {"hard"}}
    unlabelled = {"kd": {"soft"}, "pkd": {"soft", "patience"}, "tinybert": {"soft"}, "theseus": {"soft"}}
    for name, more, expected in (("labels", {}, terms), ("transfer", {"transfer": folder / "unlabelled.txt"},
                                                         unlabelled),
                                 ("augmented", {"augmented": tmp_path / "more.csv", "epochs": 2}, terms)):
        finetune.main(options(folder, "reviews.csv", tmp_path / name, **given | more))
        assert rows(tmp_path / name)[0].keys() & {"hard", "soft", "patience"} == expected[method], name


def test_options_of_theseus(folder, models, tmp_path):
    given = dict(task="reviews.csv", teacher="t", method="theseus", layers=2)
    found = resolve(Options(**given))
    assert (found.alpha, found.replace_rate, found.replace_until) == (0.0, 0.3, 0.68)
    assert resolve(Options(**given, transfer=("a.txt",), temperature=3.0)).alpha == 1.0
    for changed, says in (({"layers": None, "model": "m"}, "instead of --model"),
                          ({"replace_rate": 1.5}, "--replace-rate must be"),
                          ({"replace_until": -0.1}, "--replace-until must be")):
        with pytest.raises(UserError, match=says):
            Options(**given | changed)
    refused(run_of(folder, models, tmp_path / "a", method="kd"), "--replace-rate has no effect")
    refused(run_of(folder, models, tmp_path / "b", layers=None, **{"layer-map": "0,1,2,3,3"}), "5 has more")


# ---- TinyBERT from a cut start

def test_tinybert_has_projections_from_a_cut_start_only_if_asked(folder, models, tmp_path):
    """Without them the first step's hidden states are compared as they are."""
    given = dict(model=None, teacher=models[1], method="tinybert", layers=2, epochs=0.1, dropout=0,
                 precision="fp32", batch=8, **{"intermediate-epochs": 0.1})
    for name, more in (("plain", ()), ("projected", ("--project",))):
        finetune.main(options(folder, "reviews.csv", tmp_path / name, *more, **given))
        inner = tmp_path / name / "seed-1" / "intermediate"
        assert (inner / "projections.safetensors").exists() == bool(more)
    assert len(read_safetensors(inner / "projections.safetensors")) == 3
    student, teacher = minibert.load(tmp_path / "plain" / "student"), minibert.load(models[1])
    tokenizer, ((texts, _), _) = minibert.load_tokenizer(models[1]), read_reviews(folder)
    batch = minibert.pack(*tokenizer.encode([texts[i] for i in samples_of_step(0, 8, len(texts), 1)]))
    with torch.no_grad():
        ours, theirs = (model.encoder.trace(batch).hiddens for model in (student, teacher))
    # The copies of the layers 1 and 4 imitate the layers 1 and 4, so the first copy has no error yet.
    assert torch.equal(ours[1], theirs[1])
    expected = ((ours[2] - theirs[4]) ** 2).mean()
    said = (tmp_path / "plain" / "seed-1" / "intermediate" / "metrics.jsonl").read_text()
    first = json.loads(said.splitlines()[0])
    assert first["embedding"] == pytest.approx(0, abs=1e-10)
    assert first["hidden"] == pytest.approx(expected.item(), rel=1e-4)
    narrow = replace(minibert.load(folder / "model").config, hidden_size=8, labels=("no", "yes"))
    minibert.save(init_weights(Classifier(narrow)), tmp_path / "narrow", tokenizer)
    refused(options(folder, "reviews.csv", tmp_path / "no", "--no-project",
                    **given | {"model": tmp_path / "narrow", "layers": None}), "the student has 8")
