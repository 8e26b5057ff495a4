"""train.py --method embedding: the loss against its formulas, and runs as people run them, whose result
sentence-transformers reads.
"""

# ruff: noqa: F811  (fixtures of another file)

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import minibert
import train
from minibert.data.tokenizer import train_tokenizer
from minibert.distill.embedding import EmbeddingWeights, SentenceStudent, fit_embedding
from minibert.hub.load_save import Beside, load
from minibert.hub.sentence_files import read_sentence_files, sentence_files
from minibert.model.encoder import Encoder
from minibert.model.init import init_weights
from minibert.model.sentences import POOLING, Normalize, SentencePooling
from steps import data, gradients, loss_of, student_and_teacher
from test_train import folder, handlers, narrow, options, refused, rows  # noqa: F401

ALL = EmbeddingWeights(cosine=2.0, mse=3.0, hidden=0.5)
TEXTS = ["the old model teaches the new student", "a", "books and words", "the student reads " * 12]


def split(model, micro):
    """The last hidden states of each sequence."""
    return model.encoder(micro.batch).split(micro.batch.lengths.tolist())


@pytest.mark.parametrize("normalised", [True, False])
def test_loss_against_its_formulas(tiny_config, normalised):
    student, teacher = student_and_teacher(tiny_config)
    teacher.sentences = SentencePooling(("mean",), nn.Sequential(*[Normalize()] * normalised))
    (step,) = data(1000)
    (micro,) = step.micro_batches
    cosine = mse = hidden = 0
    for h_s, h_t in zip(split(student, micro), split(teacher, micro)):
        u_s, u_t = h_s.float().mean(0), h_t.float().mean(0)
        if normalised:
            u_s, u_t = u_s / u_s.norm(), u_t / u_t.norm()
        cosine += 1 - (u_s @ u_t) / (u_s.norm() * u_t.norm())
        mse += ((u_s - u_t) ** 2).mean()
        hidden += ((h_s - h_t) ** 2).mean(-1).sum()
    S, N = step.sequences, step.tokens
    loss, sums = loss_of("embedding", student, teacher, step, ALL)(micro)
    assert loss.item() == pytest.approx((2 * cosine / S + 3 * mse / S + 0.5 * hidden / N).item(), rel=1e-5)
    for name, expected in (("cosine", cosine), ("mse", mse), ("hidden", hidden)):
        assert sums[name].item() == pytest.approx(expected.item(), rel=1e-5)
    if normalised:  # unit vectors: |u_s - u_t|^2 = 2 (1 - cos)
        D = tiny_config.hidden_size
        assert sums["mse"].item() == pytest.approx(2 / D * sums["cosine"].item(), rel=1e-4)
    assert "hidden" not in loss_of("embedding", student, teacher, step)(micro)[1]


def test_micro_batches_and_ranks_add_up(tiny_config):
    student, teacher = student_and_teacher(tiny_config)
    expected = None
    for micro_tokens, ranks in ((1000, 1), (40, 1), (31, 2)):
        steps = data(micro_tokens, ranks)
        found, gradient = gradients(
            lambda step, micro: loss_of("embedding", student, teacher, step, ALL)(micro), student, steps)
        if expected is None:
            expected = found, gradient
        assert found["loss"].item() == pytest.approx(expected[0]["loss"].item(), rel=1e-6)
        torch.testing.assert_close(gradient, expected[1], rtol=1e-5, atol=1e-8)
    assert expected[1].abs().max() > 0.01


def test_no_gradient_where_both_are_the_same(tiny_config):
    _, teacher = student_and_teacher(tiny_config)
    student = train.make_student(teacher, teacher.config, layer_map=range(4)).requires_grad_()
    (step,) = data(1000)
    totals, gradient = gradients(
        lambda step, micro: loss_of("embedding", student, teacher, step, ALL)(micro), student, [step])
    assert totals["loss"].abs() < 1e-5 and gradient.abs().max() < 1e-5


def test_the_layer_between_two_widths_is_the_first_after_the_pooling(tiny_config):
    config = dataclasses.replace(tiny_config, dropout=0.0)
    teacher = init_weights(Encoder(config))
    own = nn.Linear(48, 7)
    teacher.sentences = SentencePooling(("cls", "mean"), nn.Sequential(own, nn.Tanh(), Normalize()), width=5)
    encoder = init_weights(Encoder(dataclasses.replace(config, hidden_size=12, intermediate_size=20)))
    student = SentenceStudent(encoder, teacher)
    linear, identity, copied, tanh, normal = student.layers
    assert (linear.in_features, linear.out_features) == (24, 48) and isinstance(identity, nn.Identity)
    assert copied is not own and torch.equal(copied.weight, own.weight)
    names = {name for name, _ in student.named_parameters() if not name.startswith("encoder.")}
    assert names == {"layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"}
    (step,) = data(1000)
    micro = step.micro_batches[0]
    loss, sums = loss_of("embedding", student, teacher, step)(micro)
    loss.backward()
    assert linear.weight.grad.abs().sum() > 0 and copied.weight.grad.abs().sum() > 0
    assert own.weight.grad is None
    equal = SentenceStudent(init_weights(Encoder(config)), teacher)
    assert [type(layer) for layer in equal.layers] == [nn.Linear, nn.Tanh, Normalize]


def test_what_cannot_be_compared_is_refused(tiny_config):
    teacher = init_weights(Encoder(tiny_config))
    encoder = init_weights(Encoder(tiny_config))
    encoder.sentences = SentencePooling(layers=nn.Sequential(nn.Linear(24, 9), nn.Identity()))
    with pytest.raises(minibert.UserError, match="9 numbers and the teacher's 24"):
        SentenceStudent(encoder, teacher)
    teacher.sentences = SentencePooling(refused="it is odd")
    with pytest.raises(minibert.UserError, match="it is odd"):
        SentenceStudent(init_weights(Encoder(tiny_config)), teacher)
    narrow = dataclasses.replace(tiny_config, hidden_size=12)
    with pytest.raises(minibert.UserError, match="12 wide cannot be compared with 24.*hidden"):
        fit_embedding(narrow, tiny_config, ALL)
    assert "12 wide" in fit_embedding(narrow, tiny_config, EmbeddingWeights())
    with pytest.raises(minibert.UserError, match="vocabulary"):
        fit_embedding(dataclasses.replace(tiny_config, vocab_size=61), tiny_config, EmbeddingWeights())


@pytest.mark.parametrize("modes", [*((mode,) for mode in POOLING), ("cls", "mean"), ("mean", "cls")])
def test_written_files_are_read_as_they_were(tmp_path, modes):
    width = 16 * len(modes)
    layers = nn.Sequential(nn.Linear(width, 8, bias=False), nn.ReLU(), nn.Linear(8, 6), nn.Identity(),
                           Normalize())
    written = SentencePooling(modes, layers, 12, True)
    for name, content in sentence_files(written, 16).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    read, _ = read_sentence_files(tmp_path, 16)
    assert (read.refused, read.modes, read.max_length, read.lowercase) == (None, modes, 12, True)
    assert [type(layer) for layer in read.layers] == [type(layer) for layer in layers]
    assert all(torch.equal(a, b) for a, b in zip(read.layers.parameters(), layers.parameters(), strict=True))


# ---------------------------------------------------------------- runs

@pytest.fixture(scope="module")
def teacher(folder):
    """The teacher of test_train as a sentence encoder: two poolings, a Dense, vectors of length 1."""
    model = load(folder / "teacher", head="encoder")
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(32, 10), nn.Tanh(), Normalize())
    shared = b'{"prompts": {"query": "the "}, "default_prompt_name": null, "similarity_fn_name": "dot"}'
    pooling = SentencePooling(("cls", "mean"), layers, 40)
    model.beside = Beside(files=sentence_files(pooling, 16, shared))
    minibert.save(model, folder / "sentences", minibert.load_tokenizer(folder / "teacher"))
    return folder / "sentences"


def run(folder, teacher, out, *more, **changed):
    return options(folder, out, "--method", "embedding", "--one-line", *more,
                   **{"teacher": teacher, "steps": 12, "lr": 3e-3} | changed)


def vectors(path):
    return minibert.embed(load(path), minibert.load_tokenizer(path), TEXTS)


def theirs(path):
    return pytest.importorskip("sentence_transformers").SentenceTransformer(str(path)).encode(TEXTS)


def test_a_student_of_the_teachers_width(folder, teacher, tmp_path, capsys):
    train.main(run(folder, teacher, tmp_path / "run", "--weights", "hidden=0.1"))
    model = tmp_path / "run" / "model"
    held_out = json.loads((tmp_path / "run" / "summary.json").read_text())["held_out"]
    assert held_out["student, trained"]["cosine"] < 0.8 * held_out["student, initial"]["cosine"]
    assert "cosine" in capsys.readouterr().out and all(row["hidden"] > 0 for row in rows(tmp_path / "run"))
    modules = json.loads((model / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    ours = vectors(model)
    assert ours.shape == (4, 10) and np.abs(ours - theirs(model)).max() < 1e-5
    assert np.abs(ours - vectors(teacher)).max() > 1e-2
    # what the teacher's folder says for others stays
    shared = json.loads((model / "config_sentence_transformers.json").read_text())
    assert shared["prompts"] == {"query": "the "} and shared["similarity_fn_name"] == "dot"
    assert load(model).config.layers == 2 and load(model).config.segments == 2


def test_a_narrower_student_and_its_continuation(folder, teacher, narrow, tmp_path):
    first, second = tmp_path / "a" / "model", tmp_path / "b" / "model"
    train.main(run(folder, teacher, tmp_path / "a", student=narrow))
    modules = json.loads((first / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"]
    assert load_file(first / "2_Dense" / "model.safetensors")["linear.weight"].shape == (32, 16)
    assert np.abs(vectors(first) - theirs(first)).max() < 1e-5
    assert vectors(first).shape == vectors(teacher).shape
    shared = "config_sentence_transformers.json"
    assert (first / shared).read_text() == (teacher / shared).read_text()
    # such a folder, as a student, goes on with its own layers
    train.main(run(folder, teacher, tmp_path / "b", student=first, lr=0, steps=1))
    assert np.abs(vectors(first) - vectors(second)).max() < 1e-6
    # and as a teacher, it is followed through all of them
    train.main(run(folder, first, tmp_path / "c", "--init", "random", steps=1))
    assert np.abs(vectors(tmp_path / "c" / "model") - theirs(tmp_path / "c" / "model")).max() < 1e-5


def test_resume_is_exact_to_the_bit(folder, teacher, narrow, tmp_path):
    given = lambda out, *more: run(folder, teacher, out, *more, "--checkpoint-every", "2",  # noqa: E731
                                   "--dropout", "0.1", student=narrow, steps=6)
    train.main(given(tmp_path / "a"))
    train.main(given(tmp_path / "b"))
    out = tmp_path / "b"
    (out / "checkpoint" / "step-6.safetensors").unlink()  # as if killed in step 6
    shutil.rmtree(out / "model")
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:5]))
    train.main(given(out, "--resume"))
    same = [[{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows(tmp_path / name)]
            for name in "ab"]
    assert same[0] == same[1] and np.array_equal(vectors(tmp_path / "a" / "model"), vectors(out / "model"))


def test_short_lines_are_read_and_no_token_is_masked(folder, teacher, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("the model\nbooks\na teacher reads words\n" * 9)
    tokenizer = minibert.load_tokenizer(teacher)
    tokens = sum(map(len, tokenizer.encode(["the model", "books", "a teacher reads words"])[0]))
    train.main(run(folder, teacher, tmp_path / "run", corpus=tmp_path / "short.txt", steps=1, batch=27))
    assert "embedding: " in (shown := capsys.readouterr().out) and "27 sequences" in shown
    assert rows(tmp_path / "run")[0]["tokens"] == 9 * tokens
    refused(run(folder, teacher, tmp_path / "x", "--weights", "cosine=0"), "weight 0")


def test_a_teacher_whose_texts_are_not_the_lines_of_a_corpus(folder, teacher, tmp_path, capsys):
    """It would learn vectors of other texts than `embed` makes them of."""
    shared = tmp_path / "prompt" / "config_sentence_transformers.json"
    shutil.copytree(teacher, shared.parent)
    shared.write_text('{"prompts": {"query": "the "}, "default_prompt_name": "query"}')
    refused(run(folder, shared.parent, tmp_path / "run"), "'the '", "default_prompt_name")
    own = tmp_path / "lower" / "sentence_bert_config.json"
    shutil.copytree(teacher, own.parent)
    own.write_text('{"max_seq_length": 40, "do_lower_case": true}')
    train.main(run(folder, own.parent, tmp_path / "fits", steps=1))  # its tokenizer lower-cases anyway
    assert load(tmp_path / "fits" / "model").sentences.lowercase
    cased = train_tokenizer(["The Model a"] * 9, 60, lowercase=False)
    size = minibert.Config(vocab_size=cased.vocab_size, hidden_size=16, layers=2, heads=2,
                           intermediate_size=24, max_positions=64)
    model = init_weights(Encoder(size))
    model.beside = Beside(files=sentence_files(SentencePooling(lowercase=True), 16))
    minibert.save(model, tmp_path / "cased", cased)
    refused(run(folder, tmp_path / "cased", tmp_path / "x"), "lower-cases", "do_lower_case")
    capsys.readouterr()
    train.main(run(folder, folder / "teacher", tmp_path / "plain", steps=1))
    assert "no modules.json" in capsys.readouterr().out
    model = tmp_path / "plain" / "model"
    assert np.abs(vectors(model) - theirs(model)).max() < 1e-5  # which the student's folder states


def test_a_teacher_that_is_not_understood(folder, teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "odd")
    tensors = load_file(tmp_path / "odd" / "2_Dense" / "model.safetensors")
    save_file({"other": tensors["linear.weight"]}, tmp_path / "odd" / "2_Dense" / "model.safetensors")
    refused(run(folder, tmp_path / "odd", tmp_path / "run"), "2_Dense", "weights")
