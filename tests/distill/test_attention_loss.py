"""TinyBERT's and MiniLM's losses against the papers' formulas, one sequence and one head at a time,
and their methods: exact accounting, what learns and what does not, memory.
"""

import math
import weakref
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from minibert.common.errors import UserError
from minibert.distill.attention_loss import attention_sum, relation_sum, split_heads
from minibert.distill.losses import hidden_sum
from minibert.distill.methods import METHODS, terms_of, weights_of
from minibert.distill.minilm import MiniLMv2Weights, MiniLMWeights, default_relation_heads
from minibert.distill.students import imitated_layers
from minibert.distill.tinybert import TinyBERTStudent, TinyBERTWeights
from minibert.model.batch import pack
from minibert.model.encoder import Encoder
from minibert.model.init import init_weights
from minibert.model.heads import MaskedLM, encoder_of
from minibert.training.optim import adamw, lamb
from minibert.training.step import freeze_unread
from steps import CPU, LargestTensor, counts_of, data, gradients, loss_of, take_step

LENGTHS = [5, 5, 2, 2, 2, 7, 1, 7, 7]
# one (T, T) at a time; some heads of a sequence, some sequences, with a rest of both; everything
CHUNKS = [1, 60, 25, None]


def batch_of(lengths):
    return pack([[0] * n for n in lengths])


def states(lengths, heads, size, dtype=torch.float64):
    """Queries and keys, (N, H, E) each."""
    return [torch.randn(sum(lengths), heads, size, dtype=dtype, requires_grad=True) for _ in range(2)]


def written_out(row_loss, a, b, t_a, t_b, lengths):
    """Sum over sequences of the mean over heads and rows of `row_loss(z_s, z_t)`."""
    total = 0
    for x, y, t_x, t_y in zip(*(s.split(lengths) for s in (a, b, t_a, t_b))):
        T, H = x.shape[:2]
        for h in range(H):
            for i in range(T):
                z_s = torch.stack([x[i, h] @ y[j, h] for j in range(T)]) / math.sqrt(x.shape[-1])
                z_t = torch.stack([t_x[i, h] @ t_y[j, h] for j in range(T)]) / math.sqrt(t_x.shape[-1])
                total = total + row_loss(z_s, z_t) / (H * T)
    return total


def squared(z_s, z_t):
    return (z_s - z_t).square().mean()


def divergence(z_s, z_t):
    p_s, p_t = z_s.softmax(0), z_t.softmax(0)
    return (p_t * (p_t / p_s).log()).sum()


LOSSES = {"attention": (attention_sum, squared), "relation": (relation_sum, divergence)}


def close(ours, theirs, tolerance=1e-10):
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("same", [False, True], ids=["q and k", "v and v"])
def test_equals_the_formula_forward_and_backward(name, same):
    loss, row_loss = LOSSES[name]
    (a, b), (t_a, t_b) = states(LENGTHS, 3, 4), states(LENGTHS, 3, 6)  # head sizes may differ
    if same:
        b, t_b = a, t_a
    leaves = [a] if same else [a, b]
    expected = written_out(row_loss, a, b, t_a, t_b, LENGTHS)
    gradients = torch.autograd.grad(3 * expected, leaves)
    for chunk in CHUNKS:
        actual = loss(a, b, t_a, t_b, batch_of(LENGTHS), chunk)
        close(actual, expected)
        for ours, theirs in zip(torch.autograd.grad(3 * actual, leaves), gradients):
            close(ours, theirs)


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name):
    lengths = [3, 3, 2]
    (a, b), teacher = states(lengths, 2, 3), [t.detach() for t in states(lengths, 2, 3)]
    f = partial(LOSSES[name][0], batch=batch_of(lengths), chunk=20)
    assert torch.autograd.gradcheck(lambda a, b: f(a, b, *teacher), (a, b))
    assert torch.autograd.gradcheck(lambda a: f(a, b.detach(), *teacher), (a,))  # only one of the two


@pytest.mark.parametrize("name", LOSSES)
def test_zero_for_equals_and_no_gradient_to_the_teacher(name):
    loss, _ = LOSSES[name]
    (a, b), (t_a, t_b) = states(LENGTHS, 3, 4), states(LENGTHS, 3, 4)
    loss(a, b, t_a, t_b, batch_of(LENGTHS)).backward()
    assert a.grad.abs().sum() > 0 and t_a.grad is None and t_b.grad is None
    same = loss(a, b, a.detach(), b.detach(), batch_of(LENGTHS))
    assert same == 0 and all(not g.any() for g in torch.autograd.grad(same, (a, b)))


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_is_close_and_keeps_fp32_sums(name):
    loss, _ = LOSSES[name]
    (a, b), (t_a, t_b) = states(LENGTHS, 3, 8, torch.float32), states(LENGTHS, 3, 8, torch.float32)
    exact = loss(a, b, t_a, t_b, batch_of(LENGTHS))
    with torch.autocast("cpu", torch.bfloat16):
        low = loss(a, b, t_a, t_b, batch_of(LENGTHS))
        halves = loss(*(x.bfloat16() for x in (a, b, t_a, t_b)), batch_of(LENGTHS))
    assert low.dtype == halves.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=0.02) == halves.item()
    for value in (low, halves):
        for ours, theirs in zip(torch.autograd.grad(value, (a, b)), torch.autograd.grad(
                exact, (a, b), retain_graph=True)):
            assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.999


@pytest.mark.parametrize("width", [4, 6])
def test_hidden_states_equal_the_formula(width):
    student = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(9, width, dtype=torch.float64, requires_grad=True)
    w = torch.randn(width, 4, dtype=torch.float64, requires_grad=True)
    difference = torch.stack([w @ h for h in student]) - teacher
    expected = sum((row**2).sum() / width for row in difference)
    actual = hidden_sum(student, teacher, w)
    close(actual, expected)
    for ours, theirs in zip(torch.autograd.grad(actual, (student, w), retain_graph=True),
                            torch.autograd.grad(expected, (student, w))):
        close(ours, theirs)
    actual.backward()
    assert teacher.grad is None
    assert hidden_sum(student, student.detach()) == 0
    with pytest.raises(UserError, match="4 wide .* 5 without a projection"):
        hidden_sum(student, torch.randn(9, 5, dtype=torch.float64))


def test_relation_heads_are_the_widths_cut_anew():
    x = torch.arange(2 * 3 * 4).reshape(2, 3, 4)
    assert torch.equal(split_heads(x, 6)[1], x[1].reshape(6, 2))
    with pytest.raises(UserError, match="5 relation heads do not divide the width 12"):
        split_heads(x, 5)


def test_heads_must_be_equal():
    with pytest.raises(UserError, match="2 heads and the teacher 3"):
        attention_sum(*states([3], 2, 4), *states([3], 3, 4), batch_of([3]))


@pytest.mark.parametrize("student, teacher, expected", [
    (4, 12, (0, 3, 6, 9, 12)), (6, 12, (0, 2, 4, 6, 8, 10, 12)), (4, 4, (0, 1, 2, 3, 4)),  # the paper's
    (5, 12, (0, 2, 5, 7, 10, 12)), (1, 12, (0, 12))])
def test_uniform_layer_maps(student, teacher, expected):
    assert imitated_layers(student, teacher) == expected


def test_given_layer_maps():
    assert imitated_layers(4, 12, (9, 10, 11, 12)) == (0, 9, 10, 11, 12)  # the paper's "top"
    for wrong in ((1, 2, 3), (0, 1, 2, 3), (1, 2, 3, 13)):
        with pytest.raises(UserError, match="must have 4 numbers, one for each student layer"):
            imitated_layers(4, 12, wrong)
    with pytest.raises(UserError, match="no uniform layer map.*--imitate"):
        imitated_layers(5, 4)


# ---------------------------------------------------------------- methods

# widths 12 and 24; minilmv2's student also has other heads
HEADS = {"tinybert": 3, "minilm": 3, "minilmv2": 2}
WEIGHTS = {"tinybert": TinyBERTWeights(embedding=0.3, hidden=0.7, attention=1.1),
           "minilm": MiniLMWeights(attention_relation=0.9, value_relation=0.4),
           "minilmv2": MiniLMv2Weights(q_relation=0.2, k_relation=0.5, v_relation=1.3, relation_heads=6)}


def models(tiny_config, method, dtype=torch.float64):
    """A smaller random student, with projections where the method has them, and a random teacher."""
    wide = replace(tiny_config, dropout=0.0, layers=4)
    narrow = replace(wide, hidden_size=12, heads=HEADS[method], layers=2, intermediate_size=20)
    teacher, student = init_weights(MaskedLM(wide)), init_weights(Encoder(narrow))
    for p in (*teacher.parameters(), *student.parameters()):
        p.data += 0.2 * torch.randn_like(p)
    METHODS[method].fit(narrow, wide, WEIGHTS[method])
    learner = TinyBERTStudent(student, wide) if method == "tinybert" else student
    return learner.to(dtype).train(), teacher.to(dtype).eval()


def summed(method, learner, teacher, steps):
    return gradients(lambda step, micro: loss_of(method, learner, teacher, step, WEIGHTS[method])(micro),
                     learner, steps)


@pytest.mark.parametrize("method", WEIGHTS)
def test_micro_batches_and_ranks_give_the_gradient_of_the_whole(method, tiny_config):
    learner, teacher = models(tiny_config, method)
    totals, whole = summed(method, learner, teacher, data(1000))
    assert tuple(totals)[1:] == terms_of(method) and whole.norm() > 0
    assert all(p.grad is None for p in teacher.parameters())
    for steps in (data(1), data(32), data(1000, ranks=2), data(32, ranks=3)):
        others, parts = summed(method, learner, teacher, steps)
        assert (parts - whole).norm() <= 1e-10 * whole.norm()
        for name in totals:
            assert abs(float(others[name] - totals[name])) <= 1e-10 * abs(float(totals[name]))


def terms_written_out(method, learner, teacher, batch):
    """Every term's mean over the step from the formulas, layer by layer."""
    ours, theirs = encoder_of(learner).trace(batch), teacher.encoder.trace(batch)
    lengths = batch.lengths.tolist()

    def scores(row_loss, *qk):
        return written_out(row_loss, *(x.detach() for x in qk), lengths) / len(lengths)

    if method == "tinybert":
        w = [m.weight for m in learner.projections]
        states = [(ours.hiddens[m] @ w[m].T - theirs.hiddens[g]).square().mean()
                  for m, g in enumerate((0, 2, 4))]
        return {"embedding": states[0], "hidden": states[1] + states[2], "attention": sum(
            scores(squared, ours.queries[m], ours.keys[m], theirs.queries[g], theirs.keys[g])
            for m, g in ((0, 1), (1, 3)))}
    if method == "minilm":
        return {"attention_relation": scores(divergence, ours.queries[1], ours.keys[1],
                                             theirs.queries[3], theirs.keys[3]),
                "value_relation": scores(divergence, *[ours.values[1]] * 2, *[theirs.values[3]] * 2)}
    return {f"{name}_relation": scores(divergence, *[x[1].reshape(-1, 6, 2)] * 2,
                                       *[t[3].reshape(-1, 6, 4)] * 2)
            for name, x, t in zip("qkv", ours[1:], theirs[1:])}


@pytest.mark.parametrize("method", WEIGHTS)
def test_the_terms_are_the_papers(method, tiny_config):
    learner, teacher = models(tiny_config, method)
    step = SimpleNamespace(tokens=14, sequences=3)
    batch = pack([torch.randint(60, (n,)).tolist() for n in (7, 5, 2)])
    loss, sums = loss_of(method, learner, teacher, step, WEIGHTS[method])(SimpleNamespace(batch=batch))
    expected = terms_written_out(method, learner, teacher, batch)
    counts = counts_of(method, step)
    for name, term in expected.items():
        assert (sums[name] / counts[name]).item() == pytest.approx(term.item(), rel=1e-10)
    assert loss.item() == pytest.approx(
        sum(getattr(WEIGHTS[method], name) * term.item() for name, term in expected.items()), rel=1e-10)


@pytest.mark.parametrize("method", WEIGHTS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(method, tiny_config):
    _, teacher = models(tiny_config, method)
    learner = Encoder(teacher.config).double()
    learner.load_state_dict(teacher.encoder.state_dict())
    totals, gradient = summed(method, learner, teacher, data(1000))
    assert all(abs(value) < 1e-12 for value in totals.values()) and gradient.abs().max() < 1e-12


def test_the_compared_layers_and_terms_can_be_chosen(tiny_config):
    learner, teacher = models(tiny_config, "tinybert")
    (step,) = data(1000)
    (micro,) = step.micro_batches
    _, sums = loss_of("tinybert", learner, teacher, step,
                      replace(WEIGHTS["tinybert"], hidden=0.0, layers=(1, 4)))(micro)
    assert list(sums) == ["embedding", "attention"]
    ours, theirs = encoder_of(learner).trace(micro.batch), teacher.encoder.trace(micro.batch)
    expected = sum(
        attention_sum(ours.queries[m], ours.keys[m], theirs.queries[g], theirs.keys[g], micro.batch)
        for m, g in ((0, 0), (1, 3)))
    assert sums["attention"].item() == pytest.approx(expected.item(), rel=1e-12)
    learner, teacher = models(tiny_config, "minilm")
    _, third = loss_of("minilm", learner, teacher, step, MiniLMWeights(teacher_layer=3))(micro)
    ours, theirs = encoder_of(learner).trace(micro.batch), teacher.encoder.trace(micro.batch)
    expected = relation_sum(*[ours.values[1]] * 2, *[theirs.values[2]] * 2, micro.batch)
    assert third["value_relation"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_models_that_do_not_fit_are_refused(tiny_config):
    wide = replace(tiny_config, layers=4)
    for method, student, changed, match in (
            ("tinybert", replace(wide, heads=2), {}, "heads 2 against 3"),
            ("minilm", replace(wide, heads=2), {}, "heads 2 against 3"),
            ("tinybert", replace(wide, vocab_size=50), {}, "vocabulary 50 against 60"),
            ("tinybert", wide, {"layers": (1, 2)}, "must have 4 numbers"),
            ("minilmv2", wide, {"teacher_layer": 5}, "and no layer 5"),
            ("minilmv2", replace(wide, hidden_size=36), {"relation_heads": 6}, None),
            ("minilmv2", replace(wide, hidden_size=30), {"relation_heads": 5}, "1, 2, 3, 6$"),
            ("minilmv2", replace(wide, hidden_size=30), {}, None),
            ("minilm", wide, {"attention_relation": 0, "value_relation": 0}, "weight 0"),
            ("tinybert", replace(wide, heads=2), {"attention": 0.0}, None)):
        if match is None:
            METHODS[method].fit(student, wide, weights_of(method, **changed))
        else:
            with pytest.raises(UserError, match=match):
                METHODS[method].fit(student, wide, weights_of(method, **changed))


@pytest.mark.parametrize("widths, heads", [
    ((768, 384), 48), ((1024, 768), 32), ((312, 768), 24), ((7, 11), 1)])
def test_relation_heads_by_default(widths, heads):
    assert default_relation_heads(*widths) == heads


@pytest.mark.parametrize("method", WEIGHTS)
def test_one_batch_can_be_learned_with_its_projections(method, tiny_config):
    learner, teacher = models(tiny_config, method, torch.float32)
    before = {name: p.clone() for name, p in learner.named_parameters()}
    (step,) = data(1000)
    optimizer = adamw(learner, (0.9, 0.98), 1e-6, 0.0)
    loss, counts = loss_of(method, learner, teacher, step, WEIGHTS[method]), counts_of(method, step)
    rows = [take_step(learner, loss, step, counts, optimizer, 5e-3) for _ in range(15)]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"] and set(terms_of(method)) < set(rows[0])
    moved = {name for name, p in learner.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in before if name.startswith("projections.")} <= moved


@pytest.mark.parametrize("optimizer", [adamw, lamb])
@pytest.mark.parametrize("method", WEIGHTS)
def test_what_no_term_reads_does_not_decay(method, optimizer, tiny_config):
    """All that follows q, k, v in MiniLM's last layer, or without its term on states in TinyBERT's."""
    learner, teacher = models(tiny_config, method, torch.float32)
    before = {name: p.clone() for name, p in learner.named_parameters()}
    (step,) = data(1000)
    weights = replace(WEIGHTS[method], hidden=0.0) if method == "tinybert" else WEIGHTS[method]
    optimizer = optimizer(learner, (0.9, 0.999), 1e-6, 0.1)
    loss = loss_of(method, learner, teacher, step, weights)
    freeze_unread(learner, loss, step.micro_batches[0], CPU)
    for _ in range(2):
        take_step(learner, loss, step, counts_of(method, step), optimizer, 1e-2, 1.0)
    same = {name for name, p in learner.named_parameters() if torch.equal(p, before[name])}
    unread = ["out", "attention_norm", "up", "down", "output_norm"] + ["value"] * (method == "tinybert")
    prefix = "encoder." if method == "tinybert" else ""
    expected = {f"{prefix}layers.1.{name}.{kind}" for name in unread for kind in ("weight", "bias")}
    if method == "tinybert":
        expected |= {f"projections.{m}.weight" for m in (1, 2)}
    assert same == expected


# ---------------------------------------------------------------- memory

def kept_for_backward(f):
    """Bytes that autograd holds when `f` has returned, and what that is."""
    saved = []

    def hold(t):
        saved.append(weakref.ref(t))  # what no longer leads to the result is let go, as it is without hooks
        return t

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t):
        result = f()
    storages = [t.untyped_storage() for t in (ref() for ref in saved) if t is not None]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values()), result


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_of_the_size_of_the_scores_is_kept(name):
    largest = LargestTensor()

    def kept(T, heads, sequences=1):
        lengths = [T] * sequences
        x, t = states(lengths, heads, 16 // heads, torch.float32), states(lengths, heads, 16 // heads)
        with largest:
            size, loss = kept_for_backward(
                lambda: LOSSES[name][0](*x, *(y.detach().float() for y in t), batch_of(lengths), 1))
            loss.backward()
        return size

    assert kept(512, 1) == kept(512, 8) == 2 * 512 * 16 * 4  # the gradients of a and b, whatever the heads
    assert kept(512, 2, sequences=2) == 4 * kept(256, 2)
    assert largest.elements == 512**2  # never more than one head's scores at once, forward or backward


@pytest.mark.parametrize("method", WEIGHTS)
def test_a_method_keeps_memory_in_proportion_to_tokens(method, tiny_config):
    kept = {}
    for T, heads, frozen in ((256, 12, False), (256, 12, True), (512, 12, True), (512, 3, True)):
        config = replace(tiny_config, heads=heads, max_positions=512, dropout=0.0)
        student, teacher = (init_weights(Encoder(config)) for _ in range(2))
        teacher.requires_grad_(not frozen)
        weights = replace(WEIGHTS[method], relation_heads=heads) if method == "minilmv2" else WEIGHTS[method]
        kept[T, heads, frozen], _ = kept_for_backward(lambda: loss_of(
            method, student, teacher, SimpleNamespace(tokens=T, sequences=1), weights)(
                SimpleNamespace(batch=pack([[7] * T]))))
    # in bytes: the scores of nine more heads would be 36 times 512^2
    assert kept[512, 12, True] < kept[512, 3, True] + 512**2
    assert kept[512, 12, True] < 2.1 * kept[256, 12, True]
    assert kept[256, 12, True] == kept[256, 12, False]  # the teacher is never traced for a gradient
