"""finetune.py against a loop written out in plain torch, at options that are not the defaults; dropout on
against off; which epoch and which seed is kept.
"""

# ruff: noqa: F811  (fixtures of another file)

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import finetune
import minibert
from minibert.common.randomness import samples_of_step
from minibert.common.runtime import Runtime
from minibert.model.heads import Classifier, Span
from minibert.model.init import init_weights
from minibert.tasks.specs import TASKS
from steps import TINY_MOBILE, plain_adamw, plain_step
from test_finetune import folder, options, refused, rows, summary  # noqa: F401
from test_train import handlers  # noqa: F401  (an autouse fixture)

BATCH, LR, DECAY, CLIP, WARMUP, EPOCHS, SEED = 7, 2e-3, 0.3, 0.4, 0.3, 1.25, 5
ALPHA, TEMPERATURE, BETA = 0.3, 3.0, 7.0


def random_classifier(folder, path, layers, seed, **changed):
    """A model with a head for reviews.csv, far from its initial weights."""
    tokenizer = minibert.load_tokenizer(folder / "model")
    config = replace(minibert.load(folder / "model").config, layers=layers, labels=("no", "yes"),
                     classifier_dropout=0.0, **changed)
    torch.manual_seed(seed)
    model = init_weights(Classifier(config))
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    minibert.save(model, path, tokenizer)
    return path


@pytest.fixture(scope="module")
def models(folder, tmp_path_factory):
    """A student of three layers and a teacher of four."""
    out = tmp_path_factory.mktemp("loop")
    return (random_classifier(folder, out / "student", 3, 1),
            random_classifier(folder, out / "teacher", 4, 2))


def read_reviews(folder):
    """Texts and labels of the training and of the dev set, as lists."""
    given = finetune.Options(model=str(folder / "model"), task=str(folder / "reviews.csv"), max_length=80)
    splits = finetune.read_task(given, given.model, minibert.load_tokenizer(folder / "model"))[1]
    return [([row.text for row in splits[name].rows], [row.label for row in splits[name].rows])
            for name in ("train", "dev")]


def written_out(student, teacher, texts, labels, tokenizer):
    """The losses, norms and rates of a run with PKD; the student is trained."""
    optimizer = plain_adamw(student, DECAY, 0.999)
    steps = math.ceil(EPOCHS * len(texts) / BATCH)
    warmup = math.ceil(WARMUP * steps)
    found = []
    for step in range(steps):
        chosen = samples_of_step(step, BATCH, len(texts), SEED)
        terms = {"hard": 0.0, "soft": 0.0, "patience": 0.0}
        for i in chosen:  # one text at a time
            batch = minibert.pack(*tokenizer.encode([texts[i]]))
            hiddens = student.encoder.trace(batch).hiddens  # embeddings first
            logits = student(batch)[0]
            with torch.no_grad():
                teacher_hiddens, teacher_logits = teacher.encoder.trace(batch).hiddens, teacher(batch)[0]
            p, log_q = F.softmax(teacher_logits / TEMPERATURE, -1), F.log_softmax(logits / TEMPERATURE, -1)
            terms["hard"] += -F.log_softmax(logits, -1)[labels[i]] / BATCH
            terms["soft"] += TEMPERATURE**2 * (p * (p.log() - log_q)).sum() / BATCH
            for own, of_teacher in ((1, 2), (2, 3)):  # --teacher-layers last: below the top of 4
                s, t = hiddens[own][0], teacher_hiddens[of_teacher][0]
                squared = ((s / s.norm() - t / t.norm()) ** 2).mean()
                terms["patience"] += squared / 2 / BATCH
        loss = (1 - ALPHA) * terms["hard"] + ALPHA * terms["soft"] + BETA * terms["patience"]
        rate = LR * min((step + 1) / warmup, (steps - step) / (steps - warmup))
        found.append(plain_step(student, optimizer, terms, loss, CLIP, rate))
    return found


def test_a_run_is_the_loop_written_out(folder, models, tmp_path):
    """Every step's terms, norm and rate, hence the weights after each update; clipping and decay are felt."""
    student, teacher = models
    finetune.main(options(folder, "reviews.csv", tmp_path / "run", model=student, teacher=teacher,
                          method="pkd", alpha=ALPHA, temperature=TEMPERATURE, beta=BETA, batch=BATCH, lr=LR,
                          epochs=EPOCHS, clip=CLIP, warmup=WARMUP, dropout=0, precision="fp32", seed=SEED,
                          **{"weight-decay": DECAY, "teacher-layers": "last", "micro-tokens": 40}))
    model = minibert.load(student)
    (texts, labels), _ = read_reviews(folder)
    expected = written_out(model, minibert.load(teacher), texts, labels, minibert.load_tokenizer(student))
    found = rows(tmp_path / "run", SEED)
    assert len(found) == len(expected) > len(texts) / BATCH
    assert sum(row["grad_norm"] > CLIP for row in expected) > 5
    for one, other in zip(found, expected):
        for name, value in other.items():
            assert one[name] == pytest.approx(value, rel=2e-4, abs=1e-6), (one["step"], name)
    kept = minibert.load(tmp_path / "run" / "model").state_dict()
    if summary(tmp_path / "run")["results"][0]["best"]["epoch"] == EPOCHS:
        assert max((kept[name] - p).abs().max() for name, p in model.state_dict().items()) < 1e-4


@pytest.mark.parametrize("option", ["dropout", "attention-dropout"])
def test_dropout_is_on_in_training_and_off_in_judging(folder, models, tmp_path, monkeypatch, option):
    """Training goes on in train mode after an epoch was judged, and what was judged is the model without
    dropout.
    """
    modes, accumulate = [], finetune.accumulate
    monkeypatch.setattr(finetune, "accumulate", lambda model, *given: (modes.append(model.training),
                                                                       accumulate(model, *given))[1])
    for name, p in (("off", 0), ("on", 0.5)):
        finetune.main(options(folder, "reviews.csv", tmp_path / name, model=models[0], precision="fp32",
                              **{"dropout": 0, option: p}))
    assert set(modes) == {True} and len(modes) == 2 * len(rows(tmp_path / "on"))
    off, on = (rows(tmp_path / name)[0]["loss"] for name in ("off", "on"))
    assert abs(off - on) > 1e-5
    model, tokenizer = minibert.load(tmp_path / "on" / "model"), minibert.load_tokenizer(models[0])
    _, (texts, labels) = read_reviews(folder)
    with torch.no_grad():
        logits = torch.cat([model(minibert.pack(*tokenizer.encode([text]))) for text in texts])
    kept = load_file(tmp_path / "on" / "dev-outputs.safetensors")["outputs"]
    assert (logits - kept).abs().max() < 1e-4
    right = (logits.argmax(-1) == torch.tensor(labels)).float().mean().item()
    assert summary(tmp_path / "on")["dev"]["median"]["accuracy"] == pytest.approx(100 * right)


def judged_as(monkeypatch, scores):
    """Has finetune.py judge its epochs by `scores`, in turn; returns the weights that each was given to."""
    given, judge = [], finetune.judge

    def scored(model, task, *more):
        _, logits = judge(model, task, *more)
        given.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return dict(scores[len(given) - 1]), logits

    monkeypatch.setattr(finetune, "judge", scored)
    return given


def by_accuracy(*values):
    return [{"accuracy": value, "matthews": -value} for value in values]


@pytest.mark.parametrize("scores, best", [((60, 80, 70), 2), ((80, 70, 60), 1), ((50, 60, 70), 3),
                                          ((60, 60, 60), 1), ((math.nan, 50, 40), 2),
                                          ((math.nan, math.nan, -1), 3), ((50, math.nan, 40), 1)])
def test_the_best_epoch_is_kept(folder, models, tmp_path, monkeypatch, scores, best):
    """Of equal ones the first; NaN is worse than any number."""
    weights = judged_as(monkeypatch, by_accuracy(*scores))
    finetune.main(options(folder, "reviews.csv", tmp_path / "run", model=models[0], epochs=3, batch=32))
    result = summary(tmp_path / "run")["results"][0]
    assert result["best"]["epoch"] == best and len(result["history"]) == 3
    kept = minibert.load(tmp_path / "run" / "model").state_dict()
    for number, then in enumerate(weights, 1):
        assert all(torch.equal(kept[name], then[name]) for name in kept) == (number == best)


@pytest.mark.parametrize("scores, best", [((60, 90, 70), 2), ((70, 60, 90), 3), ((math.nan, 60, 50), 2)])
def test_the_best_seed_is_kept(folder, models, tmp_path, monkeypatch, scores, best):
    weights = judged_as(monkeypatch, by_accuracy(*scores))
    finetune.main(options(folder, "reviews.csv", tmp_path / "run", model=models[0], epochs=1, seeds=3,
                          batch=32))
    assert summary(tmp_path / "run")["best_seed"] == best
    spread = summary(tmp_path / "run")["dev"]
    if not math.isnan(sum(scores)):
        assert [spread[name]["accuracy"] for name in ("lowest", "median", "highest")] == [60, 70, 90]
    kept = minibert.load(tmp_path / "run" / "model").state_dict()
    assert all(torch.equal(kept[name], weights[best - 1][name]) for name in kept)
    assert not all(torch.equal(kept[name], weights[best % 3][name]) for name in kept)


def test_mrpc_is_decided_by_f1(folder, tmp_path, monkeypatch):
    """The first metric of each task decides; for MRPC, as for QQP, that is F1."""
    first = {name: task.metrics[0] for name, task in TASKS.items()}
    assert first == {"cola": "matthews", "sst2": "accuracy", "mrpc": "f1", "stsb": "pearson", "qqp": "f1",
                     "mnli": "accuracy", "qnli": "accuracy", "rte": "accuracy", "wnli": "accuracy",
                     "imdb": "accuracy", "squad": "f1"}
    (tmp_path / "MRPC").mkdir()
    for name in ("train", "dev"):
        lines = [f"{i % 2}\t{i}\t{i}\tthe film was great\tthe book is dull" for i in range(16)]
        (tmp_path / "MRPC" / f"{name}.tsv").write_text("\n".join(
            ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *lines]) + "\n")
    judged_as(monkeypatch, [{"f1": 10, "accuracy": 90}, {"f1": 20, "accuracy": 80}])
    finetune.main(options(folder, "mrpc", tmp_path / "run", data=tmp_path, epochs=2))
    assert summary(tmp_path / "run")["results"][0]["best"]["epoch"] == 2


def test_the_summary_is_written_before_anything_is_printed(folder, models, tmp_path, monkeypatch):
    """A terminal that is gone, or cannot print a label, loses no result."""
    def say(*words, **more):
        if "dev examples" in " ".join(map(str, words)):
            raise UnicodeEncodeError("cp1252", "\u4e2d", 0, 1, "no such character")

    monkeypatch.setattr(finetune, "say", say)
    with pytest.raises(UnicodeEncodeError):
        finetune.main(options(folder, "reviews.csv", tmp_path / "run", model=models[0], epochs=1, batch=32))
    assert 0 <= summary(tmp_path / "run")["dev"]["median"]["accuracy"] <= 100
    assert load_file(tmp_path / "run" / "dev-outputs.safetensors")["outputs"].isfinite().all()


# ---------------------------------------------------------------- a student cut out of its teacher

SHAPES = {"bert": {}, "distilbert": {"architecture": "distilbert", "segments": 0}, "mobilebert": None}


@pytest.fixture
def tuned_as(folder, tmp_path):
    """A function that saves a random model of four layers with a head, and returns its folder."""
    def save(architecture, kind, **changed):
        small = minibert.load(folder / "model").config
        config = (replace(TINY_MOBILE, vocab_size=small.vocab_size, max_positions=128, layers=4, **changed)
                  if architecture == "mobilebert" else
                  replace(small, layers=4, **SHAPES[architecture], **changed))
        model = init_weights(kind(config))
        minibert.save(model, tmp_path / "teacher", minibert.load_tokenizer(folder / "model"))
        return tmp_path / "teacher"
    return save


@pytest.mark.parametrize("architecture, kind, task, changed", [
    ("bert", Classifier, "reviews.csv", {"labels": ("yes", "no")}),
    ("bert", Classifier, "scores.csv", {"labels": ("score",), "problem_type": "regression"}),
    ("bert", Span, "squad", {}), ("distilbert", Classifier, "reviews.csv", {"labels": ("no", "yes")}),
    ("distilbert", Span, "squad", {}), ("mobilebert", Classifier, "reviews.csv", {"labels": ("no", "yes")}),
    ("mobilebert", Span, "squad", {})])
def test_a_student_starts_as_layers_of_its_teacher(folder, tuned_as, tmp_path, architecture, kind, task,
                                                   changed):
    """Embeddings, pooler and head, too; the first step of the student is that of the cut model."""
    teacher, out = tuned_as(architecture, kind, **changed), tmp_path / "run"
    finetune.main(options(folder, task, out, model=None, teacher=teacher, epochs=0.2,
                          **{"layer-map": "0,3", "dropout": 0}))
    expected, cut = minibert.load(teacher), minibert.load(out / "student")
    flip = task == "reviews.csv" and changed["labels"][0] == "yes"  # the task's order of classes
    for name, tensor in cut.state_dict().items():
        whole = expected.state_dict()[name.replace("layers.1.", "layers.3.")]
        assert torch.equal(tensor, whole.flip(0) if flip and name.startswith("classifier.") else whole), name
    assert len(minibert.load(out / "model").encoder.layers) == 2
    finetune.main(options(folder, task, tmp_path / "again", model=out / "student", teacher=teacher,
                          epochs=0.2, dropout=0))
    assert rows(out)[0]["loss"] == rows(tmp_path / "again")[0]["loss"]


def test_layers_of_a_teacher_are_evenly_spread_and_resumed(folder, models, tmp_path):
    given = options(folder, "reviews.csv", tmp_path / "run", model=None, teacher=models[1], epochs=0.2,
                    layers=2)
    finetune.main(given)
    before = (tmp_path / "run" / "student" / "model.safetensors").read_bytes()
    finetune.main([*given, "--resume", "--seeds", "2"])
    assert (tmp_path / "run" / "student" / "model.safetensors").read_bytes() == before
    assert torch.equal(minibert.load(tmp_path / "run" / "student").encoder.layers[1].up.weight,
                       minibert.load(models[1]).encoder.layers[3].up.weight)
    for more, says in (({"model": models[0], "teacher": models[1], "layers": 2},
                        "give --model, or give --teacher"),
                       ({"model": None}, "give --model, or give --teacher"),
                       ({"model": None, "layers": 2}, "give --model, or give --teacher"),
                       ({"model": None, "teacher": models[1], "layers": 5}, "5 layers"),
                       ({"model": None, "teacher": models[1], "layer-map": "0,4"}, "layer map")):
        refused(options(folder, "reviews.csv", tmp_path / "other", **more), says)


def test_a_resumed_run_takes_up_the_loss_scale(folder, models, tmp_path, monkeypatch):
    """The scale doubles every 7 steps here; a run is stopped after its first epoch."""
    monkeypatch.setattr(Runtime, "scaler",
                        lambda self: torch.amp.GradScaler("cpu", 2.0**10, growth_interval=7))
    save, skips, scales = finetune.save_checkpoint, finetune.consecutive_skips, {}

    def saved_and_stopped(*given):
        save(*given)
        raise KeyboardInterrupt

    def recorded(before, figures, scaler, step):
        scales.setdefault(step, []).append(scaler.get_scale())
        return skips(before, figures, scaler, step)

    monkeypatch.setattr(finetune, "consecutive_skips", recorded)
    given = options(folder, "reviews.csv", tmp_path / "a", model=models[0], epochs=2, batch=16,
                    precision="fp32")
    finetune.main(given)
    given[given.index("--out") + 1] = str(tmp_path / "b")
    monkeypatch.setattr(finetune, "save_checkpoint", saved_and_stopped)
    with pytest.raises(KeyboardInterrupt):
        finetune.main(given)
    monkeypatch.setattr(finetune, "save_checkpoint", save)
    finetune.main([*given, "--resume"])
    assert len({scale for scale, _ in scales.values()}) > 1  # of both runs, at every step
    assert all(first == second for first, second in scales.values())
