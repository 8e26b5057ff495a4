"""train.py run as people run it, on a model and a corpus small enough to wait for."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import minibert
import train
from minibert.common.errors import UserError
from minibert.data.prepare import prepare
from minibert.data.tokenizer import Tokenizer, train_tokenizer
from minibert.distill.methods import terms_of
from minibert.model.config import PRESETS
from minibert.model.encoder import Encoder
from minibert.model.init import init_weights
from minibert.model.heads import MaskedLM
from minibert.training.checkpoint import save_checkpoint
from scripts import run_script

ROOT = Path(train.__file__).parent
WORDS = ("the", "a", "small", "large", "model", "teacher", "student", "learns", "reads", "writes", "words",
         "masks", "and", "then", "from", "with", "old", "new", "books", "today")


def text(documents=30, seed=0):
    draw = random.Random(seed)
    line = lambda: " ".join(draw.choice(WORDS) for _ in range(draw.randint(12, 40)))  # noqa: E731
    return "\n\n".join("\n".join(line() for _ in range(4)) for _ in range(documents)) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with corpus.txt, held-out.txt and a small random teacher of four layers, dropout on."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "corpus.txt").write_text(text())
    (folder / "held-out.txt").write_text(text(10, seed=1))
    tokenizer = train_tokenizer(text().splitlines(), 80)
    config = minibert.Config(vocab_size=tokenizer.vocab_size, hidden_size=16, layers=4, heads=2,
                             intermediate_size=32, max_positions=64)
    torch.manual_seed(0)
    teacher = init_weights(MaskedLM(config))
    for p in teacher.parameters():  # far from uniform, so that there is something to imitate
        p.data += 0.3 * torch.randn_like(p)
    minibert.save(teacher, folder / "teacher", tokenizer)
    return folder


def options(folder, out, *more, **changed):
    given = {"teacher": folder / "teacher", "corpus": folder / "corpus.txt",
             "eval-corpus": folder / "held-out.txt", "max-length": 48, "batch": 8, "micro-tokens": 120,
             "steps": 6, "eval-sequences": 20, "lr": 1e-3, "threads": 1, "out": out} | changed
    return [str(word) for name, value in given.items() if value is not None
            for word in (f"--{name}", value)] + list(more)


@pytest.fixture(autouse=True)
def handlers():
    """train.main installs signal handlers; the next test wants its own."""
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGTERM, signal.SIGINT)}
    yield
    for sign, handler in before.items():
        signal.signal(sign, handler)


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out):
    return minibert.load(out / "model").state_dict()


def test_distillation_end_to_end(folder, tmp_path, capsys, plots):
    out = tmp_path / "run"
    train.main(options(folder, out, "--eval-every", "3"))
    shown = capsys.readouterr().out
    assert "student layers start from teacher layers [0, 3]" in shown
    assert "student, trained" in shown and "[MASK]" in shown
    metrics = rows(out)
    assert [row["step"] for row in metrics] == list(range(1, 7))
    for name in ("loss", "kl", "mlm", "cosine", "accuracy", "lr", "grad_norm", "tokens_per_second", "tokens"):
        assert all(name in row for row in metrics)
    assert "held_out" in metrics[2]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["held_out"]["student, trained"]["kl"] < summary["held_out"]["student, initial"]["kl"]
    config = json.loads((out / "config.json").read_text())
    assert (config["options"]["masking"] == "smoothed" and config["options"]["clip"] == 5.0
            and "torch" in config)
    student = minibert.load(out / "model")
    assert student.config.architecture == "distilbert" and student.config.layers == 2
    assert minibert.load_tokenizer(out / "model").sha256 == minibert.load_tokenizer(folder / "teacher").sha256
    pytest.importorskip("matplotlib")
    assert (out / "curves.png").stat().st_size > 0 and "its curves in" in shown


def test_the_student_loads_in_transformers(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    train.main(options(folder, tmp_path / "run", steps=2))
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "run" / "model", output_loading_info=True)
    assert type(model).__name__ == "DistilBertForMaskedLM"
    assert not info["missing_keys"] and not info["unexpected_keys"]
    fill = transformers.pipeline("fill-mask", tmp_path / "run" / "model")
    assert len(fill("the small [MASK] learns")) == 5


def test_micro_batches_change_nothing(folder, tmp_path):
    """Dropout off: 8 sequences at once, or a few at a time."""
    train.main(options(folder, tmp_path / "a", "--micro-tokens", "4000", "--dropout", "0",
                       "--precision", "fp32"))
    train.main(options(folder, tmp_path / "b", "--micro-tokens", "48", "--dropout", "0",
                       "--precision", "fp32"))
    for a, b in zip(rows(tmp_path / "a"), rows(tmp_path / "b")):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["tokens"] == b["tokens"]


@pytest.fixture(scope="module")
def narrow(folder):
    """A student of two layers, half as wide as the teacher."""
    wide = minibert.load(folder / "teacher").config
    torch.manual_seed(1)
    student = init_weights(Encoder(dataclasses.replace(wide, hidden_size=8, layers=2, intermediate_size=12)))
    minibert.save(student, folder / "narrow", minibert.load_tokenizer(folder / "teacher"))
    return folder / "narrow"


INNER = {"tinybert": (), "minilm": (), "minilmv2": ("--relation-heads", "4")}


@pytest.mark.parametrize("method", ["tinybert", pytest.param("minilm", marks=pytest.mark.slow),
                                    pytest.param("minilmv2", marks=pytest.mark.slow)])
def test_what_happens_inside_is_learned_at_any_width(folder, narrow, tmp_path, method, capsys):
    out = tmp_path / "run"
    train.main(options(folder, out, "--method", method, *INNER[method], "--eval-every", "5", student=narrow,
                       steps=25, lr=1e-2))
    shown, metrics = capsys.readouterr().out, rows(out)
    terms = terms_of(method)
    assert all(name in row for row in metrics for name in terms) and "masks" not in shown
    assert ("student layer imitates teacher layer: 1 2, 2 4" in shown) == (method == "tinybert")
    held_out = json.loads((out / "summary.json").read_text())["held_out"]
    before, after = held_out["student, initial"], held_out["student, trained"]
    assert after["loss"] < before["loss"] and after["loss"] == pytest.approx(sum(after[t] for t in terms))
    assert metrics[4]["held_out"]["loss"] > metrics[19]["held_out"]["loss"]
    if method != "minilmv2":  # which compares queries with queries, not with keys
        assert after["attention_kl"] < before["attention_kl"]
    student = minibert.load(out / "model")  # an encoder: no head that nothing trained, no projections
    assert type(student) is Encoder and student.config.hidden_size == 8
    assert not torch.equal(student.layers[1].query.weight, minibert.load(narrow).layers[1].query.weight)


def test_such_a_student_loads_in_transformers(folder, narrow, tmp_path):
    transformers = pytest.importorskip("transformers")
    train.main(options(folder, tmp_path / "run", "--method", "tinybert", student=narrow, steps=2))
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "run" / "model",
                                                         output_loading_info=True)
    assert type(model).__name__ == "BertModel" and not info["unexpected_keys"]
    assert all(name.startswith("pooler.") for name in info["missing_keys"])  # MLM trains none either


@pytest.fixture(scope="module")
def ib_bert(folder):
    """A small random IB-BERT."""
    config = dataclasses.replace(PRESETS["ib-bert-small"], hidden_size=16, layers=2, heads=2,
                                 embedding_size=8, bottleneck_size=32, intermediate_size=32, max_positions=64,
                                 vocab_size=minibert.load(folder / "teacher").config.vocab_size)
    torch.manual_seed(2)
    teacher = init_weights(MaskedLM(config))
    for p in teacher.parameters():
        p.data += 0.3 * torch.randn_like(p)
    minibert.save(teacher, folder / "ib-bert", minibert.load_tokenizer(folder / "teacher"))
    return folder / "ib-bert"


@pytest.mark.parametrize("schedule", [pytest.param("akt", marks=pytest.mark.slow),
                                      pytest.param("jkt", marks=pytest.mark.slow), "pkt"])
def test_mobilebert_learns_from_an_ib_bert_and_resumes_inside_a_stage(folder, ib_bert, tmp_path, monkeypatch,
                                                                      schedule):
    share = () if schedule == "akt" else ("--transfer-share", "0.8")
    # pkt: layer 1 in steps 1 to 4, layer 2 in 5 to 8, then distillation
    more = ("--method", "mobilebert", "--schedule", schedule, "--checkpoint-every", "5", *share)
    changed = {"teacher": ib_bert, "steps": 10, "lr": 2e-3}
    given, update = [], train.update
    monkeypatch.setattr(train, "update", lambda model, optimizer, *rest: (
        given.append({group["part"]: group["lr"] for group in optimizer.param_groups}),
        update(model, optimizer, *rest))[1])
    train.main(options(folder, tmp_path / "a", *more, **changed))
    if schedule == "pkt":  # layer 2 in its second step of four; layer 1 below it at a tenth of its rate
        assert given[5][0] == 0 and 2e-3 < given[5][2] == pytest.approx(10 * given[5][1])
    metrics = rows(tmp_path / "a")
    assert ("kd" in metrics[0]) == (schedule == "akt") and "kd" in metrics[-1] and "mlm" in metrics[-1]
    assert ("attention" in metrics[-1]) == (schedule == "akt")
    student = minibert.load(tmp_path / "a" / "model")
    assert student.config.bottleneck_size == 4 and student.config.architecture == "mobilebert"
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "checkpoint" / "step-10.safetensors").unlink()
    train.main(options(folder, tmp_path / "b", *more, "--resume", **changed))
    assert all(torch.equal(a, b) for a, b in zip(weights(tmp_path / "a").values(),
                                                 weights(tmp_path / "b").values(), strict=True))
    refused(options(folder, tmp_path / "x", "--method", "mobilebert"), "IB-BERT", "minilmv2")
    if schedule != "akt":
        refused(options(folder, tmp_path / "x", *more, **(changed | {"steps": 1})), "more steps")


def test_an_ib_bert_is_trained_and_kept_for_minibert_alone(folder, ib_bert, tmp_path):
    with pytest.warns(UserWarning, match="only minibert loads it"):
        train.main(options(folder, tmp_path / "run", "--method", "mlm", "--student", str(ib_bert),
                           teacher=None, steps=1))
    assert minibert.load(tmp_path / "run" / "model").config.attention_input == "hidden"


def test_a_mobilebert_learns_from_a_stock_bert(folder, tmp_path):
    config = dataclasses.replace(PRESETS["mobilebert-small"], hidden_size=16, layers=2, heads=2,
                                 embedding_size=8, bottleneck_size=8, intermediate_size=16, max_positions=64,
                                 vocab_size=minibert.load(folder / "teacher").config.vocab_size)
    minibert.save(init_weights(MaskedLM(config)), folder / "mobile",
                  minibert.load_tokenizer(folder / "teacher"))
    train.main(options(folder, tmp_path / "run", "--method", "minilmv2", "--relation-heads", "4", "--student",
                       str(folder / "mobile"), steps=2))
    assert minibert.load(tmp_path / "run" / "model").config.architecture == "mobilebert"


def test_equal_students_have_the_attention_of_their_teacher(folder, tmp_path):
    """All four layers copied, nothing learned: the KL of attention is 0."""
    teacher = folder / "teacher"
    train.main(options(folder, tmp_path / "run", "--layers", "4", "--precision", "fp32", teacher=teacher,
                       steps=1, lr=0))
    held_out = json.loads((tmp_path / "run" / "summary.json").read_text())["held_out"]
    assert held_out["student, trained"]["attention_kl"] == pytest.approx(0, abs=1e-6)


def test_the_terms_can_be_weighted(folder, tmp_path):
    train.main(options(folder, tmp_path / "a", "--weights", "kl=0", "cosine=0.5", steps=1))
    row = rows(tmp_path / "a")[0]
    assert row["loss"] == pytest.approx(2 * row["mlm"] + 0.5 * row["cosine"], rel=1e-5)


@pytest.mark.parametrize("method", ["distilbert", pytest.param("mlm", marks=pytest.mark.slow),
                                    pytest.param("tinybert", marks=pytest.mark.slow),
                                    pytest.param("minilm", marks=pytest.mark.slow)])
def test_resume_is_exact_to_the_bit(folder, narrow, tmp_path, method):
    """Dropout on, several micro-batches a step; the second run is taken up from its checkpoint at step 4."""
    more = ("--method", method, "--checkpoint-every", "2")
    if method in ("tinybert", "minilm"):  # of minilm's last layer, some has no state in the optimiser
        more += ("--student", str(narrow))
    train.main(options(folder, tmp_path / "a", *more))
    train.main(options(folder, tmp_path / "b", *more))
    out = tmp_path / "b"
    # as if killed in step 6: half a row written, no checkpoint yet
    (out / "checkpoint" / "step-6.safetensors").unlink()
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    train.main(options(folder, out, *more, "--resume"))
    a, b = weights(tmp_path / "a"), weights(out)
    assert all(torch.equal(a[name], b[name]) for name in a)
    same = [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows(tmp_path / "a")]
    assert same == [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows(out)]


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_resume_goes_on(folder, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), *options(folder, out, steps=100_000)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           env=os.environ | {"PYTHONPATH": str(ROOT)})
    deadline = time.time() + 60
    while time.time() < deadline and not (out / "metrics.jsonl").exists():
        time.sleep(0.1)
    time.sleep(1)
    run.send_signal(signal.SIGTERM)
    said = run.communicate(timeout=60)[0]
    assert run.returncode == 143 and "continue with --resume" in said and "Traceback" not in said
    (checkpoint,) = (out / "checkpoint").glob("step-*")
    assert rows(out)[-1]["step"] == int(checkpoint.stem[5:])


def test_mlm_from_scratch_and_from_a_folder(folder, tmp_path):
    tokenizer = minibert.load_tokenizer(folder / "teacher")
    prepare([folder / "corpus.txt"], tokenizer, tmp_path / "prepared", report=lambda *_: None)
    train.main(options(folder, tmp_path / "scratch", "--method", "mlm", "--student", "bert-L2-H128",
                       teacher=None, corpus=tmp_path / "prepared", steps=2))
    model = minibert.load(tmp_path / "scratch" / "model")
    assert model.config.architecture == "bert" and model.config.vocab_size == tokenizer.vocab_size
    train.main(options(folder, tmp_path / "more", "--method", "mlm", "--student",
                       str(tmp_path / "scratch" / "model"), teacher=None, steps=2))
    before, after = weights(tmp_path / "scratch"), weights(tmp_path / "more")
    assert not torch.equal(before["mlm.bias"], after["mlm.bias"])
    assert json.loads((tmp_path / "more" / "config.json").read_text())["options"]["clip"] == 1.0


def test_an_encoder_without_head_gets_a_new_one(folder, tmp_path):
    teacher = minibert.load(folder / "teacher")
    minibert.save(teacher.encoder, tmp_path / "encoder", minibert.load_tokenizer(folder / "teacher"))
    train.main(options(folder, tmp_path / "run", "--method", "mlm", "--student", str(tmp_path / "encoder"),
                       teacher=None, steps=1))
    assert hasattr(minibert.load(tmp_path / "run" / "model"), "mlm")


def refused(argv, *words):
    with pytest.raises(UserError) as error:
        train.main(argv)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value).strip() or "tensor" in str(error.value)


def test_a_run_is_resumed_when_its_text_is_gone(folder, tmp_path, capsys):
    source = shutil.copy(folder / "corpus.txt", tmp_path / "corpus.txt")
    train.main(options(folder, tmp_path / "run", corpus=source, steps=2))
    os.remove(source)  # what was prepared from it is in the run's folder
    train.main(options(folder, tmp_path / "run", "--resume", corpus=source, steps=2))
    assert "resuming after step 2" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["teacher", "student"])
def test_a_run_is_not_resumed_with_other_weights_under_the_same_name(folder, tmp_path, option):
    given = {"teacher": folder / "teacher", "student": folder / "teacher"}
    given[option] = shutil.copytree(folder / "teacher", tmp_path / option)
    argv = options(folder, tmp_path / "run", "--resume", steps=1, **given)
    train.main(argv)
    train.main(argv)  # as they were
    model = minibert.load(tmp_path / option)
    model.mlm.bias.data += 0.01
    minibert.save(model, tmp_path / option, minibert.load_tokenizer(folder / "teacher"))
    refused(argv, f"the weights of --{option} are not those", "--out")


def test_a_preset_that_starts_as_its_teacher_computes_as_it_does(folder, tmp_path, monkeypatch):
    """All layers of a teacher with another activation: the student is the teacher."""
    teacher = minibert.load(folder / "teacher")
    shape = dataclasses.replace(teacher.config, activation="relu", norm_eps=1e-3)
    relu = MaskedLM(shape)
    relu.load_state_dict(teacher.state_dict())
    minibert.save(relu, tmp_path / "relu", minibert.load_tokenizer(folder / "teacher"))
    monkeypatch.setitem(PRESETS, "tiny", teacher.config)
    train.main(options(folder, tmp_path / "run", "--precision", "fp32", teacher=tmp_path / "relu",
                       student="tiny", steps=1, lr=0))
    held_out = json.loads((tmp_path / "run" / "summary.json").read_text())["held_out"]
    assert held_out["student, initial"]["kl"] == pytest.approx(0, abs=1e-6)


def test_a_model_too_short_for_the_closing_sentences_ends_well(folder, tmp_path, capsys):
    config = dataclasses.replace(minibert.load(folder / "teacher").config, max_positions=12)
    tokenizer = minibert.load_tokenizer(folder / "teacher")
    minibert.save(init_weights(MaskedLM(config)), tmp_path / "short", tokenizer)
    train.main(options(folder, tmp_path / "run", teacher=tmp_path / "short", steps=1, **{"max-length": 12}))
    assert (tmp_path / "run" / "summary.json").exists()
    assert "The function returns" not in capsys.readouterr().out


def test_bad_input_is_one_clear_sentence(folder, tmp_path):
    out = tmp_path / "run"
    refused(options(folder, out, corpus=tmp_path / "none.txt"), "none.txt")
    (tmp_path / "empty.txt").write_text("\n\n")
    refused(options(folder, out, corpus=tmp_path / "empty.txt"), "empty")
    (tmp_path / "junk.txt").write_bytes(bytes(range(256)) * 50)
    refused(options(folder, tmp_path / "junk", corpus=tmp_path / "junk.txt"), "junk.txt")
    (tmp_path / "latin.txt").write_bytes("eins\nzwei\ndrei für\n".encode("latin-1"))
    refused(options(folder, tmp_path / "latin", corpus=tmp_path / "latin.txt"), "latin.txt", "3")
    (tmp_path / "two.txt").write_text("a b\nc\n")
    short = options(folder, tmp_path / "short", corpus=tmp_path / "two.txt")
    refused(short, "no sequence of 12", "more text")
    refused(short, "exists already")
    refused(options(folder, tmp_path / "late", "--eval-corpus", str(tmp_path / "none.txt"),
                    corpus=tmp_path / "two.txt"), "none.txt does not exist")
    assert not (tmp_path / "late" / "corpus").exists()  # said before anything was prepared
    refused(options(folder, tmp_path / "x", teacher=tmp_path / "nobody"), "nobody")
    refused(options(folder, tmp_path / "x", "--student", "bert-L2-H128"), "width")
    refused(options(folder, tmp_path / "x", "--layers", "9"), "9 layers")
    refused(options(folder, tmp_path / "x", "--layer-map", "0,7"), "layer map")
    refused(options(folder, tmp_path / "x", **{"max-length": 65}), "the student's 64")
    refused(options(folder, tmp_path / "x", **{"micro-tokens": 10}), "--micro-tokens")
    refused(options(folder, tmp_path / "x", "--method", "mlm", teacher=None), "--student")
    refused(options(folder, tmp_path / "x", "--weights", "kl"), "--weights kl", "TERM=WEIGHT")
    refused(options(folder, tmp_path / "x", "--weights", "hidden=1"), "hidden=1", "kl, mlm, cosine")
    refused(options(folder, tmp_path / "x", "--weights", "kl=-1"), "at least 0")
    refused(options(folder, tmp_path / "x", "--relation-heads", "4"),
            "has no effect with --method distilbert", "needs --method minilmv2")
    refused(options(folder, tmp_path / "x", "--mask-share", "0"), "--mask-share")
    refused(options(folder, tmp_path / "x", "--method", "tinybert"), "heads 12 against 2")
    refused(options(folder, tmp_path / "x", "--method", "tinybert", "--imitate", "1,b"), "--imitate 1,b")
    refused(options(folder, tmp_path / "x", "--method", "minilm", "--layer-map", "0,3"), "--init teacher")
    refused(options(folder, tmp_path / "x", "--method", "minilm", "--init", "teacher"), "heads 12 against")


def test_options_that_would_not_be_read_are_refused(folder, tmp_path):
    teacher = str(folder / "teacher")
    for more, changed, words in (
            (("--student", teacher, "--layers", "1"), {}, ("--layers", "complete model")),
            (("--student", teacher, "--init", "random"), {}, ("--init", "complete model")),
            (("--student", teacher, "--token-types", "drop"), {}, ("--token-types", "complete model")),
            (("--method", "mlm", "--student", "bert-L2-H128", "--layer-map", "0,1"), {"teacher": None},
             ("--layer-map", "random weights")),
            (("--method", "minilm", "--token-types", "drop"), {}, ("--token-types", "--init teacher")),
            (("--init", "random", "--token-types", "drop"), {}, ("--token-types", "--init teacher")),
            (("--method", "tinybert", "--masking", "bert"), {}, ("--masking", "tinybert", "--mask-share")),
            (("--method", "minilmv2", "--masking", "bert", "--mask-share", "0"), {}, ("--masking",)),
            (("--method", "mobilebert", "--layers", "2"), {}, ("--layers", "as its teacher")),
            (("--method", "mobilebert", "--schedule", "akt", "--transfer-share", "0.5"), {}, ("akt",))):
        refused(options(folder, tmp_path / "x", *more, **changed), *words)
    read = train.Options(method="tinybert", masking="bernoulli", mask_share=0.1)
    assert read.resolved().masking == "bernoulli"


def test_layers_of_a_preset_that_starts_at_random(folder, tmp_path):
    prepare([folder / "corpus.txt"], minibert.load_tokenizer(folder / "teacher"), tmp_path / "prepared",
            report=None)
    train.main(options(folder, tmp_path / "run", "--method", "mlm", "--student", "bert-L2-H128",
                       teacher=None, corpus=tmp_path / "prepared", steps=1, layers=1))
    assert minibert.load(tmp_path / "run" / "model").config.layers == 1


@pytest.mark.parametrize("more", [
    ("--clip", "0"), ("--clip", "-1"), ("--beta2", "1"), ("--epochs", "inf"), ("--weight-decay", "-0.1"),
    ("--lr", "nan"), ("--warmup", "1.5"), ("--eval-every", "0"),
    ("--transfer-share", "1", "--method", "mobilebert"),
    ("--seed", "-1"), ("--seed", str(2**63)),
    ("--weights", "kl=0", "mlm=0", "cosine=0")])
def test_numbers_that_train_nothing_or_break_the_run_are_refused(folder, tmp_path, more):
    refused(options(folder, tmp_path / "x", *more), more[0] if more[0] != "--weights" else "weight 0")
    assert not (tmp_path / "x").exists()


def test_a_student_of_other_words_is_refused(folder, tmp_path):
    """As many pieces in another order, and pieces more than the teacher's."""
    model, words = minibert.load(folder / "teacher"), minibert.load_tokenizer(folder / "teacher")
    pieces = [words.id_to_piece(i) for i in range(words.vocab_size)]
    pieces[-1], pieces[-2] = pieces[-2], pieces[-1]
    minibert.save(model, tmp_path / "other", Tokenizer({piece: i for i, piece in enumerate(pieces)}))
    refused(options(folder, tmp_path / "x", student=tmp_path / "other"), "other", "tokenizer")
    larger = init_weights(MaskedLM(dataclasses.replace(model.config, vocab_size=words.vocab_size + 1)))
    minibert.save(larger, tmp_path / "larger", words)
    refused(options(folder, tmp_path / "x", "--method", "mlm", student=tmp_path / "larger"), "vocabulary")


def test_a_teacher_of_fewer_positions_than_max_length_is_refused(folder, tmp_path):
    words, config = minibert.load_tokenizer(folder / "teacher"), minibert.load(folder / "teacher").config
    longer = init_weights(MaskedLM(dataclasses.replace(config, max_positions=80)))
    minibert.save(longer, tmp_path / "longer", words)
    refused(options(folder, tmp_path / "x", "--method", "mlm", student=tmp_path / "longer",
                    **{"max-length": 65}), "--max-length 65", "the teacher's 64 positions")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_in_the_last_step_stops(folder, tmp_path, monkeypatch, sign):
    """It comes when the last checkpoint is written: nothing is lost, the closing evaluation does not run."""
    class Terminated(Exception):
        pass

    def end(*_):
        raise Terminated

    def save(*given):
        save_checkpoint(*given)
        os.kill(os.getpid(), sign)

    monkeypatch.setattr(train, "save_checkpoint", save)
    before = signal.signal(signal.SIGTERM, end)
    with pytest.raises(KeyboardInterrupt if sign == signal.SIGINT else Terminated):
        train.main(options(folder, tmp_path / "run", steps=1))
    signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "run" / "checkpoint" / "step-1.safetensors").is_file()
    assert not (tmp_path / "run" / "summary.json").exists()
    monkeypatch.undo()
    train.main(options(folder, tmp_path / "run", "--resume", steps=1))
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_truncated_teacher_is_named(folder, tmp_path):
    shutil.copytree(folder / "teacher", tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "model.safetensors", 3000)
    refused(options(folder, tmp_path / "x", teacher=tmp_path / "cut"), "model.safetensors")


def test_a_corpus_of_another_tokenizer_is_refused(folder, tmp_path):
    other = train_tokenizer(["quite another set of words entirely"] * 3, 60)
    prepare([folder / "corpus.txt"], other, tmp_path / "prepared", report=lambda *_: None)
    refused(options(folder, tmp_path / "x", corpus=tmp_path / "prepared"), "tokenizer")


def test_a_run_in_use_is_refused(folder, tmp_path):
    train.main(options(folder, tmp_path / "run", steps=1))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    refused(options(folder, tmp_path / "run", steps=1), "--resume")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    refused(options(folder, tmp_path / "run", "--resume", steps=1, lr=2e-3), "--lr 0.001")
    refused(options(folder, tmp_path / "run", "--resume", "--seed", "3", steps=1), "--seed 56")


def test_exit_code_two_without_traceback(folder, tmp_path, monkeypatch, capsys):
    for argv in (["--no-such-option"], options(folder, tmp_path / "x", corpus=tmp_path / "none.txt")):
        assert run_script("train.py", monkeypatch, *argv) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said and "error: " in said


def test_help_shows_three_examples(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    assert capsys.readouterr().out.count("python train.py") == 3


def test_two_ranks_give_the_run_of_one(folder, tmp_path):
    """torchrun with two processes, and one process, dropout off: the same losses and weights to rounding,
    also where the run of two ranks is resumed by one.
    """
    more = ("--dropout", "0", "--precision", "fp32", "--checkpoint-every", "3")
    train.main(options(folder, tmp_path / "one", *more, threads=1))
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    str(ROOT / "train.py"), *options(folder, tmp_path / "two", *more, threads=1)],
                   check=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["tokens"] == b["tokens"]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-4
    (tmp_path / "two" / "checkpoint" / "step-6.safetensors").unlink()
    train.main(options(folder, tmp_path / "two", *more, "--resume", threads=1))
    resumed = weights(tmp_path / "two")
    assert max((two[name] - resumed[name]).abs().max() for name in two) < 1e-4


def test_token_type_1_is_as_type_0_where_nothing_trains_it(folder, tmp_path, monkeypatch):
    """Pre-training text has type 0 only. A student that starts at random keeps the two alike, so its second
    sentences are embedded like first ones, not with the noise of a row that was drawn and never trained.
    """
    tokenizer, teacher = minibert.load_tokenizer(folder / "teacher"), minibert.load(folder / "teacher")
    types = teacher.encoder.segment.weight.data
    types[1] = types[0] + 0.02  # as in BERT, the second differs little from the first
    minibert.save(teacher, tmp_path / "teacher", tokenizer)
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(teacher.config, layers=2))
    train.main(options(folder, tmp_path / "run", "--method", "mlm", "--init", "random",
                       "--weight-decay", "0.1", teacher=tmp_path / "teacher", student="tiny", steps=8,
                       lr=1e-2))
    student = minibert.load(tmp_path / "run" / "model").encoder
    assert torch.equal(student.segment.weight[1], student.segment.weight[0])
    # the student if training had not changed it
    drawn = init_weights(Encoder(student.config), torch.Generator().manual_seed(56))
    ids, segments = tokenizer.encode(["the small model"], ["reads old books"])
    batch, second = minibert.pack(ids, segments), torch.tensor(segments[0]) == 1
    first = student.embed(batch._replace(segments=torch.zeros_like(batch.segments)))

    def error():
        return (student.embed(batch) - first)[second].square().mean().item()

    assert error() == 0
    student.segment.weight.data[1] = drawn.segment.weight[1]
    assert error() > 1e-4


def test_token_types_of_a_teacher_are_kept(folder, tmp_path):
    """Layers copied: the second type is the teacher's, which has a meaning."""
    train.main(options(folder, tmp_path / "run", "--method", "mlm", "--student", str(folder / "teacher"),
                       steps=1))
    before, after = (minibert.load(path).encoder.segment.weight[1]
                     for path in (folder / "teacher", tmp_path / "run" / "model"))
    assert (before - after).abs().max() < 1e-4


@pytest.mark.parametrize("method, origins, layers, expected", [
    ("distilbert", [0, 2, 5], 3, (1, 3, 6)),  # those it started as
    ("minilm", None, 3, (2, 4, 6)),  # uniform
    ("tinybert", [0, 2, 5], 3, (4, 5, 6)),  # those it imitates
    ("minilm", None, 7, None)])
def test_layers_whose_attention_is_compared(method, origins, layers, expected):
    encoder = Encoder(dataclasses.replace(PRESETS["bert-L2-H128"], vocab_size=9, layers=layers))
    run = SimpleNamespace(options=SimpleNamespace(method=method), module=encoder, origins=origins,
                          weights=SimpleNamespace(layers=(4, 5, 6)),
                          teacher=SimpleNamespace(config=SimpleNamespace(layers=6)))
    assert train.compared_layers(run) == expected


def test_a_corpus_without_held_out_text_is_said_and_trains(folder, tmp_path, capsys):
    train.main(options(folder, tmp_path / "run", **{"eval-corpus": None, "steps": 1}))
    assert "there is no evaluation" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "summary.json").read_text()).keys() == {"tokens"}
