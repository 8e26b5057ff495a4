"""train.py against a loop written out in plain torch, at options that are not the defaults; dropout on
against off; what a resumed run takes up.
"""

# ruff: noqa: F811  (fixtures of another file)

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

import minibert
import train
from minibert.common.runtime import Runtime
from minibert.data.corpus import open_corpus
from minibert.data.loader import make_step
from minibert.data.masking import Masking
from minibert.data.prepare import prepare
from minibert.distill.distilbert import DistilBERTWeights
from minibert.distill.minilm import MiniLMv2Weights, MiniLMWeights
from minibert.distill.tinybert import TinyBERTWeights
from minibert.model.heads import MaskedLM
from minibert.model.init import init_weights
from steps import CPU, plain_adamw, plain_step
from test_train import folder, handlers, options, rows, weights  # noqa: F401

BATCH, STEPS, LR, DECAY, CLIP, WARMUP, BETA2, SEED, SHARE = 6, 9, 3e-3, 0.3, 0.6, 0.4, 0.9, 5, 0.3
KL, MLM, COSINE, TEMPERATURE = 3.0, 1.5, 0.7, 4.0


@pytest.fixture(scope="module")
def student(folder):
    """A student of three layers, far from its initial weights."""
    config = dataclasses.replace(minibert.load(folder / "teacher").config, layers=3)
    torch.manual_seed(1)
    model = init_weights(MaskedLM(config))
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    minibert.save(model, folder / "student", minibert.load_tokenizer(folder / "teacher"))
    return folder / "student"


def written_out(student, teacher, corpus, tokenizer):
    """The losses, norms and rates of a run with the triple loss; the student is trained."""
    optimizer = plain_adamw(student, DECAY, BETA2)
    warmup = math.ceil(WARMUP * STEPS)
    found, read = [], 0
    for step in range(STEPS):
        drawn = make_step(corpus, tokenizer, step, batch=BATCH, micro_tokens=1, seed=SEED,  # one at a time
                          masking=Masking("bernoulli", SHARE))
        terms = {"kl": 0.0, "mlm": 0.0, "cosine": 0.0}
        for batch, labels, _, _ in drawn.micro_batches:
            s, logits = student.encoder(batch), student(batch)
            with torch.no_grad():
                t, teacher_logits = teacher.encoder(batch), teacher(batch)
            p, log_q = F.softmax(teacher_logits / TEMPERATURE, -1), F.log_softmax(logits / TEMPERATURE, -1)
            terms["kl"] += TEMPERATURE**2 * (p * (p.log() - log_q)).sum() / drawn.tokens
            for i, label in enumerate(labels.tolist()):
                if label >= 0:
                    terms["mlm"] += -F.log_softmax(logits[i], -1)[label] / drawn.masked
            terms["cosine"] += (1 - (s * t).sum(-1) / s.norm(dim=-1) / t.norm(dim=-1)).sum() / drawn.tokens
        loss = KL * terms["kl"] + MLM * terms["mlm"] + COSINE * terms["cosine"]
        rate = LR * min((step + 1) / warmup, (STEPS - step) / (STEPS - warmup))
        read += drawn.tokens
        found.append({**plain_step(student, optimizer, terms, loss, CLIP, rate), "tokens": read})
    return found


def test_a_run_is_the_loop_written_out(folder, student, tmp_path):
    """Every step's terms, norm and rate, hence the weights after each update; clipping is felt."""
    out = tmp_path / "run"
    train.main(options(folder, out, "--weights", f"kl={KL}", f"mlm={MLM}", f"cosine={COSINE}",
                       student=student, steps=STEPS, batch=BATCH, lr=LR, clip=CLIP, warmup=WARMUP,
                       beta2=BETA2, dropout=0, precision="fp32", seed=SEED, temperature=TEMPERATURE,
                       masking="bernoulli",
                       **{"weight-decay": DECAY, "mask-share": SHARE, "micro-tokens": 100}))
    model, tokenizer = minibert.load(student), minibert.load_tokenizer(student)
    teacher, corpus = minibert.load(folder / "teacher"), open_corpus(out / "corpus", 48)
    expected = written_out(model, teacher, corpus, tokenizer)
    assert sum(row["grad_norm"] > CLIP for row in expected) > STEPS / 2
    for one, other in zip(rows(out), expected, strict=True):
        for name, value in other.items():
            assert one[name] == pytest.approx(value, rel=2e-4, abs=1e-6), (one["step"], name)
    kept = weights(out)
    assert max((kept[name] - p).abs().max() for name, p in model.state_dict().items()) < 1e-4


@pytest.mark.parametrize("option", ["dropout", "attention-dropout"])
def test_dropout_is_on_in_training_and_off_on_held_out_text(folder, student, tmp_path, option):
    """Nothing is learned at rate 0: every step is told by its dropout alone, also after an evaluation."""
    for name, p in (("off", 0), ("on", 0.5)):
        train.main(options(folder, tmp_path / name, student=student, precision="fp32", steps=3, lr=0,
                           **{"dropout": 0, option: p, "eval-every": 1, "eval-sequences": 5}))
    off, on = (rows(tmp_path / name) for name in ("off", "on"))
    for one, other in zip(off, on, strict=True):
        assert abs(one["loss"] - other["loss"]) > 1e-5
        assert one.get("held_out") == other.get("held_out")
    assert "held_out" in on[0]


def test_options_of_models_and_text_reach_the_run(folder, tmp_path):
    """Layers of the map, token type 0 left out, each line a sequence, so many held-out sequences."""
    given = train.Options(teacher=str(folder / "teacher"), corpus=(str(folder / "corpus.txt"),),
                          eval_corpus=(str(folder / "held-out.txt"),), layer_map="1,3", token_types="drop",
                          one_line=True, eval_sequences=7, max_length=48, steps=1)
    run = train.make_run(given.resolved(), CPU, tmp_path)
    teacher, student = run.teacher.encoder, run.module.encoder
    assert run.origins == [1, 3] and torch.equal(student.layers[0].up.weight, teacher.layers[1].up.weight)
    assert torch.equal(student.position.weight, teacher.position.weight)
    assert run.held_out.sequences == 7
    joined, lines = (len(open_corpus(tmp_path / "corpus", 48, one_line)) for one_line in (False, True))
    assert len(run.corpus) == lines > joined


def test_a_prepared_corpus_gives_the_held_out_text_and_the_seed_the_weights(folder, tmp_path):
    prepare([folder / "corpus.txt"], minibert.load_tokenizer(folder / "teacher"), tmp_path, held_out=0.3,
            report=None)
    runs = [train.make_run(train.Options(teacher=str(folder / "teacher"), corpus=(str(tmp_path),), seed=seed,
                                         init="random", max_length=48).resolved(), CPU, tmp_path)
            for seed in (1, 2)]
    unseen = open_corpus(tmp_path, 48, parts=("held-out",))
    assert runs[0].held_out.tokens == unseen.n_tokens < runs[0].corpus.n_tokens
    first, second = (run.module.encoder.word.weight for run in runs)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("given, expected", [
    ({"kl_masked_only": True, "temperature": 3.0}, DistilBERTWeights(temperature=3.0, kl_masked_only=True)),
    ({"method": "tinybert", "imitate": "1,2,3,4"}, TinyBERTWeights(layers=(1, 2, 3, 4))),
    ({"method": "minilm", "teacher_layer": 3}, MiniLMWeights(teacher_layer=3)),
    ({"method": "minilmv2", "relation_heads": 6, "weights": ("k_relation=2",)},
     MiniLMv2Weights(k_relation=2.0, relation_heads=6))])
def test_options_of_the_loss_reach_it(given, expected):
    assert train.Options(**given).resolved().loss_weights() == expected


def test_the_optimiser_is_the_one_asked_for(folder, student, tmp_path):
    """LAMB moves each matrix by the rate times its own norm."""
    train.main(options(folder, tmp_path / "run", "--optimizer", "lamb", student=student, steps=1, warmup=0,
                       precision="fp32"))
    before, after = minibert.load(student).state_dict(), weights(tmp_path / "run")
    for name in ("encoder.word.weight", "encoder.layers.1.up.weight"):
        moved, size = (after[name] - before[name]).norm().item(), before[name].norm().item()
        assert moved == pytest.approx(1e-3 * size, rel=1e-3)


def test_what_the_loss_does_not_read_stays_as_it_is(folder, student, tmp_path):
    """MiniLM reads queries, keys and values of the last layer. Its feed-forward network does not decay."""
    train.main(options(folder, tmp_path / "run", "--method", "minilm", student=student, steps=1, warmup=0,
                       precision="fp32", **{"weight-decay": 0.5}))
    before, after = minibert.load(student).encoder, minibert.load(tmp_path / "run" / "model")
    assert torch.equal(before.layers[2].down.weight, after.layers[2].down.weight)
    for name in ("layers.1.down.weight", "layers.2.value.weight"):
        assert not torch.equal(before.get_parameter(name), after.get_parameter(name))


def test_a_resumed_run_takes_up_the_loss_scale(folder, tmp_path, monkeypatch):
    """It has doubled once after 6 steps, and counts the steps since; fp32 shows no other difference."""
    monkeypatch.setattr(Runtime, "scaler",
                        lambda self: torch.amp.GradScaler("cpu", 2.0**10, growth_interval=4))
    given = options(folder, tmp_path / "run", "--checkpoint-every", "3", precision="fp32")
    train.main(given)
    last = tmp_path / "run" / "checkpoint" / "step-6.safetensors"

    def scale():
        with safe_open(last, "pt") as file:
            return json.loads(file.metadata()["state"])["scaler"]

    before = scale()
    assert before["scale"] == 2.0**11 and before["_growth_tracker"] == 2
    last.unlink()
    train.main([*given, "--resume"])
    assert scale() == before
