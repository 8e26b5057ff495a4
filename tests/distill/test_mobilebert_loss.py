"""MobileBERT's losses and schedules against their definitions; what moves in which stage; students."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minibert.common.errors import UserError
from minibert.distill.methods import METHODS
from minibert.distill.minilm import MiniLMv2Weights, fit_minilmv2
from minibert.distill.mobilebert import MobileBERTWeights, feature_map_sums, fit_mobilebert, mobilebert_counts
from minibert.distill.students import distilbert_of, make_student
from minibert.model.batch import IGNORE
from minibert.model.config import Config, MobileConfig
from minibert.model.encoder import Encoder
from minibert.model.init import init_weights
from minibert.model.heads import MaskedLM, build_encoder
from minibert.training.checkpoint import load_checkpoint, save_checkpoint
from minibert.training.mobilebert_stages import (SCHEDULES, TRANSFER_SHARE, Stage, begin_stage, part_of,
                                                 rates, stage_at, stage_weights, stages)
from minibert.training.optim import adamw, lamb
from steps import counts_of, data, gradients, loss_of, take_step

LAYERS = 3
TEACHER = MobileConfig(vocab_size=60, hidden_size=20, layers=LAYERS, heads=2, intermediate_size=32,
                       max_positions=32, embedding_size=7, bottleneck_size=24, feed_forwards=1,
                       attention_input="hidden", norm="layer_norm", activation="gelu_tanh")
STUDENT = replace(TEACHER, intermediate_size=16, bottleneck_size=12, feed_forwards=2, norm="no_norm",
                  attention_input="shared", activation="relu", tanh_pooler=False)
WEIGHTS = MobileBERTWeights(feature_map=1.3, mean=0.7, variance=0.4, attention=1.1, mlm=0.3, kd=0.7)


def models(dtype=torch.float64, student=STUDENT):
    """A random teacher, and its student moved away from it."""
    teacher = init_weights(MaskedLM(TEACHER))
    for p in teacher.parameters():
        p.data += 0.2 * torch.randn_like(p)
    student = make_student(teacher, student, init="embeddings", seed=1)
    for p in student.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return student.to(dtype).train(), teacher.to(dtype).eval().requires_grad_(False)


# --- losses ---

def terms_written_out(student, teacher, micro, layers):
    """Every term's mean over the step from the formulas, one sequence and one head at a time."""
    ours, theirs = student.encoder.trace(micro.batch), teacher.encoder.trace(micro.batch)
    lengths, L, terms = micro.batch.lengths.tolist(), student.config.layers, {}
    terms = dict.fromkeys(("feature_map", "mean", "variance", "attention"), 0.0)
    for l in layers:
        h_s, h_t = ours.hiddens[l], theirs.hiddens[l]
        mean_s, mean_t = h_s.sum(1, keepdim=True) / 20, h_t.sum(1, keepdim=True) / 20
        var_s, var_t = (((h - m) ** 2).sum(1, keepdim=True) / 20 for h, m in ((h_s, mean_s), (h_t, mean_t)))
        normal_s, normal_t = (h_s - mean_s) / var_s.sqrt(), (h_t - mean_t) / var_t.sqrt()
        terms["feature_map"] += ((normal_s - normal_t) ** 2).mean() / L
        terms["mean"] += ((mean_s - mean_t) ** 2).mean() / L
        terms["variance"] += (var_s - var_t).abs().mean() / L
        for q, k, t_q, t_k in zip(*(x[l - 1].split(lengths) for x in (ours.queries, ours.keys, theirs.queries,
                                                                      theirs.keys))):
            for head in range(2):
                a_s = (q[:, head] @ k[:, head].T / 6 ** 0.5).softmax(-1)  # heads are 12 / 2 and 24 / 2 wide
                a_t = (t_q[:, head] @ t_k[:, head].T / 12 ** 0.5).softmax(-1)
                terms["attention"] += (a_t * (a_t / a_s).log()).sum(-1).mean() / (2 * len(lengths) * L)
    rows = micro.labels != IGNORE
    z_s, z_t = student(micro.batch)[rows], teacher(micro.batch)[rows]
    terms["mlm"] = F.cross_entropy(z_s, micro.labels[rows])
    terms["kd"] = F.kl_div(z_s.log_softmax(-1), z_t.softmax(-1), reduction="batchmean")
    return terms


@pytest.mark.parametrize("layers, distil", [(None, True), ((1, 2, 3), False), ((2,), False), ((), True)])
def test_the_loss_is_the_formulas_forward_and_backward(layers, distil):
    student, teacher = models()
    (step,) = data(1000)
    (micro,) = step.micro_batches
    weights = replace(WEIGHTS, layers=layers, **({} if distil else dict(mlm=0.0, kd=0.0)))
    expected = terms_written_out(student, teacher, micro, (1, 2, 3) if layers is None else layers)
    names = [*expected][:0 if layers == () else 4] + ["mlm", "kd"] * distil
    loss, sums = loss_of("mobilebert", student, teacher, step, weights)(micro)
    assert sums.keys() - {"accuracy"} == set(names)
    counts = mobilebert_counts(step, weights)
    for name in names:
        assert sums[name].item() / counts[name] == pytest.approx(expected[name].item(), rel=1e-9)
    total = sum(getattr(WEIGHTS, name) * expected[name] for name in names)
    assert loss.item() == pytest.approx(total.item(), rel=1e-10)
    leaves = list(student.parameters())
    for ours, theirs in zip(*(torch.autograd.grad(value, leaves, allow_unused=True)
                              for value in (loss, total))):
        assert (ours is None or not ours.any()) if theirs is None else (
            (ours - theirs).abs().max() <= 1e-9 * max(theirs.abs().max(), 1e-3))
    assert all(p.grad is None for p in teacher.parameters())


def test_a_term_without_weight_is_left_out_and_others_stay():
    student, teacher = models()
    (step,) = data(1000)
    (micro,) = step.micro_batches
    _, every = loss_of("mobilebert", student, teacher, step, WEIGHTS)(micro)
    weights = replace(WEIGHTS, attention=0.0, mean=0.0, kd=0.0)
    _, sums = loss_of("mobilebert", student, teacher, step, weights)(micro)
    assert sums == {name: every[name] for name in ("feature_map", "variance", "mlm", "accuracy")}


def test_the_papers_feature_map_loss_is_split_without_rest():
    """Means and variances alike, the normalised part is the mean square over the variance."""
    h = torch.randn(9, 20, dtype=torch.float64)
    sums = feature_map_sums(h, h[:, torch.randperm(20)])
    assert sums["mean"] < 1e-25 and sums["variance"] < 1e-12 and sums["feature_map"] > 1
    sums = feature_map_sums(3 * h + 2, h)  # only the statistics differ
    assert sums["feature_map"] < 1e-20
    assert sums["variance"].item() == pytest.approx((8 * h.var(1, correction=0)).sum().item())
    assert sums["mean"].item() == pytest.approx(((2 * h.mean(1) + 2) ** 2).sum().item())


def summed(student, teacher, steps, weights):
    return gradients(lambda step, micro: loss_of("mobilebert", student, teacher, step, weights)(micro),
                     student, steps)


@pytest.mark.parametrize("layers", [None, (2,), ()])
def test_micro_batches_and_ranks_give_the_gradient_of_the_whole(layers):
    student, teacher = models()
    weights = replace(WEIGHTS, layers=layers)
    totals, whole = summed(student, teacher, data(1000), weights)
    for steps in (data(1), data(32), data(1000, ranks=2), data(32, ranks=3)):
        others, parts = summed(student, teacher, steps, weights)
        assert (parts - whole).norm() <= 1e-10 * whole.norm()
        assert all(float(others[name]) == pytest.approx(float(totals[name]), rel=1e-9) for name in totals)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_but_labels():
    _, teacher = models()
    student = MaskedLM(TEACHER).double()
    student.load_state_dict(teacher.state_dict())
    totals, gradient = summed(student, teacher, data(1000), replace(WEIGHTS, mlm=0.0))
    assert all(abs(value) < 1e-12 for name, value in totals.items() if name not in ("mlm", "accuracy"))
    assert gradient.abs().max() < 1e-12


def test_lower_layers_do_not_pay_for_the_ones_above():
    """The transfer of layer 1 computes one layer of each model."""
    student, teacher = models()
    (step,) = data(1000)
    (micro,) = step.micro_batches
    for model in (student, teacher):
        model.encoder.layers[1].forward = None  # would raise
    weights = replace(WEIGHTS, layers=(1,), mlm=0.0, kd=0.0)
    loss, _ = loss_of("mobilebert", student, teacher, step, weights)(micro)
    assert loss > 0


# --- schedules ---

def test_stages_of_the_paper():
    assert stages("akt", 740, 24) == [Stage(0, 740, tuple(range(1, 25)), True)]
    assert stages("jkt", 740, 24) == [Stage(0, 240, tuple(range(1, 25)), False), Stage(240, 740, (), True)]
    progressive = stages("pkt", 740, 24)
    assert progressive == [*(Stage(10 * i, 10 * i + 10, (i + 1,), False) for i in range(24)),
                           Stage(240, 740, (), True)]
    assert TRANSFER_SHARE * 740_000 == pytest.approx(240_000)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [10, 37, 1000])
def test_stages_cover_the_run(schedule, steps):
    plan = stages(schedule, steps, 3)
    assert plan[0].first == 0 and plan[-1].last == steps and plan[-1].distil
    assert all(a.last == b.first for a, b in zip(plan, plan[1:])) and all(s.last > s.first for s in plan)
    for step in range(steps):
        stage = stage_at(plan, step)
        assert stage.first <= step < stage.last


def test_a_run_too_short_for_its_stages_is_refused():
    with pytest.raises(UserError, match="of 30 steps, 10 are for the transfer.*each of its 24 stages"):
        stages("pkt", 30, 24)
    with pytest.raises(UserError, match="and the distillation need"):
        stages("jkt", 30, 3, transfer_share=1.0)


def test_what_a_stage_minimises():
    transfer, distillation = stages("jkt", 100, 3)
    (both,) = stages("akt", 100, 3)
    assert stage_weights(transfer, WEIGHTS) == replace(WEIGHTS, layers=(1, 2, 3), mlm=0.0, kd=0.0)
    assert stage_weights(distillation, WEIGHTS) == replace(WEIGHTS, layers=())
    assert stage_weights(both, WEIGHTS) == replace(WEIGHTS, layers=(1, 2, 3))


def test_rates_of_a_layers_stage_are_those_of_the_authors_code():
    stage = Stage(100, 200, (2,), False)
    for step in range(100, 200):
        p = (step - 99) / 100
        background = min((1.0 - 0.9) * (1 - p) ** 0.5 + 0.9, 10 * p)  # tf.train.polynomial_decay, twice
        assert rates(stage, step, 3, 0.5) == pytest.approx([0.0, 3 * 0.1 * background, 3 * background, 0.0])
    assert rates(stage, 100, 3, 0.5)[2] == pytest.approx(0.3)
    assert rates(stage, 199, 3, 0.5)[2] == pytest.approx(2.7)
    assert rates(Stage(0, 10, (1, 2, 3), False), 4, 3, 0.5)[0] == 0  # jkt: all layers at once, nothing else
    assert len(set(rates(Stage(0, 10, (1, 2, 3), False), 4, 3, 0.5)[1:])) == 1


def test_rates_of_the_distillation():
    stage = Stage(100, 200, (), True)
    assert rates(stage, 100, 3, 0.1) == pytest.approx([0.1] * 4)
    assert rates(stage, 109, 3, 0.1) == [1.0] * 4
    assert rates(stage, 199, 3, 0.1) == pytest.approx([1 / 90] * 4)


def run(student, teacher, schedule, steps, optimizer, first=0, last=None, lr=2e-3):
    """A run of the loop of train.py; returns how far each parameter moved in each stage, and the rows."""
    plan, moved, rows = stages(schedule, steps, LAYERS, transfer_share=0.5), {}, []
    (step,) = data(1000)
    (micro,) = step.micro_batches
    with torch.no_grad():  # labels that do not contradict the teacher
        micro.labels[micro.masked] = teacher(micro.batch).argmax(-1)[micro.masked]
    for done in range(first, last or steps):
        stage = stage_at(plan, done)
        factors = rates(stage, done, LAYERS, 0.1)
        begin_stage(stage, done, student, optimizer)
        before = {name: p.detach().clone() for name, p in student.named_parameters()}
        weights = stage_weights(stage, MobileBERTWeights())
        rows.append(take_step(student, loss_of("mobilebert", student, teacher, step, weights), step,
                              mobilebert_counts(step, weights), optimizer, lr, 1.0, factors=factors))
        assert not rows[-1]["skipped"]
        for name, p in student.named_parameters():
            if not torch.equal(p, before[name]):
                moved.setdefault(stage, {}).setdefault(part_of(name), {}).setdefault(name, 0.0)
                moved[stage][part_of(name)][name] += float((p.detach() - before[name]).norm())
    return moved, rows


BUILDERS = {"adamw": adamw, "lamb": lamb}


@pytest.mark.parametrize("optimizer", BUILDERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_which_parameters_move_in_each_stage(schedule, optimizer):
    student, teacher = models(torch.float32)
    parts = {}
    for name, _ in student.named_parameters():
        parts.setdefault(part_of(name), set()).add(name)
    assert set(parts) == {0, 1, 2, 3} and "encoder.word.weight" in parts[0] and "mlm.bias" in parts[0]
    assert sum(map(len, parts.values())) == len(list(student.parameters()))
    moved, _ = run(student, teacher, schedule, 12, BUILDERS[optimizer](
        student, (0.9, 0.999), 1e-6, 0.01, part_of))
    expected = {"akt": [{0, 1, 2, 3}], "jkt": [{1, 2, 3}, {0, 1, 2, 3}],
                "pkt": [{1}, {1, 2}, {1, 2, 3}, {0, 1, 2, 3}]}[schedule]
    assert [set(by_part) for by_part in moved.values()] == expected
    # in MobileBERT no key bias changes a softmax, and a shared unit may be dead: nearly all is asked for
    for by_part in moved.values():
        for part, names in by_part.items():
            assert len(parts[part] - names.keys()) <= 2, (part, parts[part] - names.keys())
    if schedule == "pkt":  # lower layers are nearly frozen: a tenth of the rate
        third = moved[stages("pkt", 12, LAYERS, 0.5)[2]]
        name = "encoder.layers.{}.out.weight"
        assert third[1][name.format(0)] < 0.3 * third[3][name.format(2)]


ONE_IS_QUICK = [*(pytest.param(one, marks=pytest.mark.slow) for one in ("akt", "jkt")), "pkt"]


@pytest.mark.parametrize("schedule", ONE_IS_QUICK)
def test_a_run_resumed_anywhere_is_the_same_to_the_bit(schedule, tmp_path):
    """Inside a stage, and at the border where the optimiser starts anew."""
    whole, teacher = models(torch.float32)
    start = {name: t.clone() for name, t in whole.state_dict().items()}
    _, rows = run(whole, teacher, schedule, 12, lamb(whole, (0.9, 0.999), 1e-6, 0.01, part_of))
    for stop in (3, 6):
        student = MaskedLM(STUDENT)
        student.load_state_dict(start)
        optimizer = lamb(student, (0.9, 0.999), 1e-6, 0.01, part_of)
        _, before = run(student, teacher, schedule, 12, optimizer, last=stop)
        save_checkpoint(tmp_path, stop, student, optimizer, {})
        resumed = MaskedLM(STUDENT)
        optimizer = lamb(resumed, (0.9, 0.999), 1e-6, 0.01, part_of)
        done = load_checkpoint(tmp_path, resumed, optimizer)["step"]
        _, after = run(resumed, teacher, schedule, 12, optimizer, first=done)
        assert before + after == rows
        assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters()))


def test_frozen_parts_are_not_in_the_norm_that_is_clipped_and_the_optimiser_starts_anew():
    student, teacher = models(torch.float32)
    optimizer = lamb(student, (0.9, 0.999), 1e-6, 0.01, part_of)
    _, rows = run(student, teacher, "pkt", 12, optimizer, last=1)
    inside = [p for name, p in student.named_parameters() if part_of(name) == 1]
    assert set(optimizer.state) <= set(inside)
    assert all(p.grad is None for p in student.parameters() if p not in set(inside))
    run(student, teacher, "pkt", 12, optimizer, first=1, last=6)
    first = next(p for p in inside if p in optimizer.state)
    before = optimizer.state[first]["exp_avg"].clone()
    plan = stages("pkt", 12, LAYERS, 0.5)
    begin_stage(plan[-1], 7, student, optimizer)
    assert torch.equal(optimizer.state[first]["exp_avg"], before)
    begin_stage(plan[-1], 6, student, optimizer)
    assert not optimizer.state and all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("schedule", ONE_IS_QUICK)
def test_every_stage_learns_one_batch(schedule):
    student, teacher = models(torch.float32)
    optimizer = adamw(student, (0.9, 0.999), 1e-6, 0.01, part_of)
    _, rows = run(student, teacher, schedule, 48, optimizer, lr=5e-3)
    for stage in stages(schedule, 48, LAYERS, transfer_share=0.5):
        assert rows[stage.last - 1]["loss"] < 0.75 * rows[stage.first]["loss"]


# --- students ---

@pytest.mark.parametrize("norm", ["no_norm", "layer_norm"])
def test_a_student_starts_with_its_teachers_embeddings_and_head(norm):
    _, teacher = models()
    student = make_student(teacher.float(), replace(STUDENT, norm=norm), init="embeddings", seed=3)
    theirs = teacher.state_dict()
    fresh = init_weights(MaskedLM(replace(STUDENT, norm=norm)), torch.Generator().manual_seed(3)).state_dict()
    for name, tensor in student.state_dict().items():
        kept = ".layers." in name or (norm == "no_norm" and name.startswith("encoder.norm."))
        assert torch.equal(tensor, fresh[name] if kept else theirs[name]), name
        assert kept or tensor.data_ptr() != theirs[name].data_ptr()


@pytest.mark.parametrize("change, says", [
    (dict(layers=2), "layers 2 against 3"), (dict(heads=3), "heads 3 against 2"),
    (dict(hidden_size=24), "width between blocks 24 against 20"), (dict(vocab_size=61), "vocabulary 61"),
    (dict(embedding_size=8), "width of the word embeddings 8"), (dict(max_positions=16), "positions 16"),
    (dict(segments=1), "token types 1"),
])
def test_models_that_do_not_fit_are_refused(change, says):
    fit_mobilebert(STUDENT, TEACHER, WEIGHTS)
    with pytest.raises(UserError, match=says):
        fit_mobilebert(replace(STUDENT, **change), TEACHER, WEIGHTS)


def test_berts_and_weights_of_nothing_are_refused():
    with pytest.raises(UserError, match="the teacher of --method mobilebert .* is a bert; minilmv2 teaches"):
        fit_mobilebert(STUDENT, Config(), WEIGHTS)
    with pytest.raises(UserError, match="the student .* is a distilbert"):
        fit_mobilebert(Config(architecture="distilbert", segments=0), TEACHER, WEIGHTS)
    with pytest.raises(UserError, match="mlm, kd all have weight 0"):
        fit_mobilebert(STUDENT, TEACHER, replace(WEIGHTS, mlm=0.0, kd=0.0))
    with pytest.raises(UserError, match="feature_map, mean, variance, attention all have weight 0"):
        fit_mobilebert(STUDENT, TEACHER, MobileBERTWeights(0.0, 0.0, 0.0, 0.0))


def test_copies_and_distilberts_of_a_mobilebert():
    student, _ = models(torch.float32)
    half = make_student(student, layer_map=[0, 2])
    assert torch.equal(half.encoder.trigram.weight, student.encoder.trigram.weight)
    assert torch.equal(half.mlm.extra.weight, student.mlm.extra.weight)
    assert torch.equal(half.encoder.layers[1].shared.weight, student.encoder.layers[2].shared.weight)
    with pytest.raises(UserError, match="give --student"):
        distilbert_of(STUDENT)
    bert = MaskedLM(Config(vocab_size=60, hidden_size=20, layers=3, heads=2, intermediate_size=16,
                           max_positions=32))
    with pytest.raises(UserError, match="width of the word embeddings 7 against 20"):
        make_student(bert, STUDENT)


@pytest.mark.parametrize("method, heads", [("minilm", 2), ("minilmv2", 3)])
def test_a_stock_bert_teaches_a_mobilebert_its_relations(method, heads):
    teacher = init_weights(Encoder(Config(vocab_size=60, hidden_size=24, layers=4, heads=heads,
                                          intermediate_size=32, max_positions=32, dropout=0.0)))
    for p in teacher.parameters():
        p.data += 0.2 * torch.randn_like(p)
    teacher.eval().requires_grad_(False)
    weights = MiniLMv2Weights(relation_heads=6) if method == "minilmv2" else METHODS[method].weights()
    METHODS[method].fit(STUDENT, teacher.config, weights)
    student = init_weights(build_encoder(STUDENT))
    optimizer = adamw(student, (0.9, 0.999), 1e-6, 0.0)
    (step,) = data(1000)
    loss, counts = loss_of(method, student, teacher, step, weights), counts_of(method, step)
    rows = [take_step(student, loss, step, counts, optimizer, 2e-2) for _ in range(40)]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


def test_relation_heads_must_divide_the_width_of_attention():
    with pytest.raises(UserError, match="do not divide the widths 12 and 24; .*: 1, 2, 3, 4, 6, 12"):
        fit_minilmv2(STUDENT, Config(hidden_size=24, heads=3, vocab_size=60),
                     MiniLMv2Weights(relation_heads=5))


def test_parts_of_names():
    names = ("encoder.word.weight", "encoder.layers.0.query.bias", "encoder.layers.11.stacked.2.up.weight",
             "mlm.extra.weight")
    assert [part_of(name) for name in names] == [0, 1, 12, 0]
