"""One test for each exercise of docs/exercises.md, which says whether the function that you wrote is right.

It compares with torch, numpy, or numbers worked out by hand. Each function has harder tests in the folder of
its module: of chunks, of memory, of 16 bits, of odd input.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minibert.common.errors import UserError
from minibert.common.runtime import Runtime
from minibert.data.masking import Masking, mask_tokens
from minibert.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from minibert.distill.attention_loss import attention_sum, relation_sum
from minibert.distill.losses import cosine_sum
from minibert.distill.students import copied_layers
from minibert.distill.vocab_loss import kl_and_gradient
from minibert.model.attention import attend_one
from minibert.model.batch import pack
from minibert.tasks.metrics import matthews
from minibert.tasks.squad import f1
from minibert.training.optim import learning_rate
from minibert.training.step import accumulate


def same(ours, theirs, what: str, tolerance: float = 1e-10) -> None:
    """Fails, and says what differs, unless both are equal up to a share `tolerance`."""
    ours, theirs = (torch.as_tensor(x, dtype=torch.float64) for x in (ours, theirs))
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, not {tuple(theirs.shape)}"
    close = torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    assert close, f"{what}:\n{ours.tolist()}\nand not\n{theirs.tolist()}"


def test_pack():
    batch = pack([[2, 7, 3], [2, 3], [2, 9, 8, 3]])
    assert batch.ids.tolist() == [2, 7, 3, 2, 3, 2, 9, 8, 3]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert batch.segments.tolist() == [0] * 9
    assert batch.offsets.tolist() == [0, 3, 5, 9] and batch.lengths.tolist() == [3, 2, 4]
    kinds = [x.dtype for x in batch]
    assert kinds == [torch.int64, torch.int64, torch.int64, torch.int32, torch.int64], "dtypes, as in `Batch`"
    given = pack([[5, 6], [7]], segments=[[0, 1], [1]], positions=[[4, 9], [3]])
    assert given.segments.tolist() == [0, 1, 1] and given.positions.tolist() == [4, 9, 3]
    for ids, segments in (([], None), ([[1], []], None), ([[1, 2]], [[0]])):
        with pytest.raises(UserError):
            pack(ids, segments)


def test_attention():
    q, k, v = torch.randn(3, 5, 2, 8, dtype=torch.float64)  # T = 5, H = 2, E = 8
    expected = F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v))).transpose(0, 1)
    same(attend_one(q, k, v), expected, "attention")


def test_masking():
    words = [f"word{i}" for i in range(195)]
    tokenizer = Tokenizer({piece: i for i, piece in enumerate(SPECIAL_TOKENS + words)})
    lengths = np.full(1000, 20)
    ids = np.random.default_rng(0).integers(5, 200, 20_000)
    ids[::20], ids[19::20] = tokenizer.cls_id, tokenizer.sep_id
    before = ids.copy()
    for selection in ("bernoulli", "bert"):
        inputs, selected = mask_tokens(ids, lengths, tokenizer, Masking(selection), 1, 2)
        assert (ids == before).all(), "the ids that came in were changed"
        assert not selected[tokenizer.special[ids]].any(), "a special token was selected"
        assert (inputs == ids)[~selected].all(), "a token that was not selected was changed"
        shown, old = inputs[selected], ids[selected]
        assert abs((shown == tokenizer.mask_id).mean() - 0.8) < 0.03, "80 % become [MASK]"
        assert abs((shown == old).mean() - 0.1) < 0.02, "10 % stay as they are"
        others = shown[(shown != old) & (shown != tokenizer.mask_id)]
        assert abs(len(others) / len(shown) - 0.1) < 0.02, "10 % become another piece"
        assert len(np.unique(others)) > 100, "other pieces are drawn from the whole vocabulary"
        again, other = (mask_tokens(ids, lengths, tokenizer, Masking(selection), 1, step) for step in (2, 3))
        assert (again.selected == selected).all() and (again.inputs == inputs).all(), "one key, one result"
        assert (other.selected != selected).any(), "another key, the same masks"
        counts = selected.reshape(1000, 20).sum(1)
        if selection == "bert":
            assert (counts == 3).all(), "of 20 tokens, round(0.15 * 20) are selected in every sequence"
        else:
            assert abs(selected[~tokenizer.special[ids]].mean() - 0.15) < 0.01 and counts.std() > 1, (
                "every token by itself, with probability 0.15")
    assert not mask_tokens(ids, lengths, tokenizer, Masking(share=0), 1).selected.any(), "a share of 0"


def test_layer_map():
    for student, teacher, expected in ((6, 12, [0, 2, 4, 7, 9, 11]), (4, 12, [0, 4, 7, 11]), (2, 4, [0, 3]),
                                       (1, 12, [0]), (3, 3, [0, 1, 2])):
        assert list(copied_layers(student, teacher)) == expected, f"{student} of {teacher}"
    for student, teacher in ((7, 6), (0, 6)):
        with pytest.raises(UserError):
            copied_layers(student, teacher)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl(temperature):
    z_s, z_t = 3 * torch.randn(2, 4, 7, dtype=torch.float64)  # 4 rows, V = 7
    z_s.requires_grad_()
    rows = temperature**2 * F.kl_div((z_s / temperature).log_softmax(-1), (z_t / temperature).log_softmax(-1),
                                     reduction="none", log_target=True).sum(-1)
    (gradient,) = torch.autograd.grad(rows.sum(), z_s)
    kl, ours = kl_and_gradient(z_s.detach().clone(), z_t.clone(), temperature)
    same(kl, rows.detach(), "T^2 KL of each row")
    same(ours, gradient, "its gradient by z_s")
    kl, ours = kl_and_gradient(torch.tensor([[0.0, -300.0]]), torch.tensor([[0.0, -200.0]]), 1.0)
    assert kl.isfinite().all() and ours.isfinite().all(), "no logarithm of 0 where a probability is tiny"


def test_cosine():
    h_s, h_t = torch.randn(2, 6, 10, dtype=torch.float64)  # N = 6, D = 10
    same(cosine_sum(h_s, h_t), F.cosine_embedding_loss(h_s, h_t, torch.ones(6), reduction="sum"), "the sum")
    same(cosine_sum(h_s, 7 * h_s), 0.0, "of vectors of one direction")
    assert cosine_sum(h_s.bfloat16(), h_t.bfloat16()).dtype == torch.float32, "16 bits are summed in fp32"


def scores(x, y, offsets):
    """The (H, T, T) scores of each sequence."""
    for begin, end in zip(offsets[:-1], offsets[1:]):
        a, b = x[begin:end].transpose(0, 1), y[begin:end].transpose(0, 1)  # (H, T, E)
        yield a @ b.mT / a.shape[-1] ** 0.5


def compare_scores(ours, of_sequence) -> None:
    """`ours` of packed q and k of student and teacher is the sum of `of_sequence(z_s, z_t)`, and so are its
    gradients; the teacher gets none.
    """
    batch = pack([[5] * 3, [5] * 5, [5] * 3])
    q, k = torch.randn(2, 11, 2, 4, dtype=torch.float64, requires_grad=True)  # H = 2, E = 4
    t_q, t_k = torch.randn(2, 11, 2, 6, dtype=torch.float64)  # the teacher's heads are 6 wide
    total = ours(q, k, t_q, t_k, batch)
    pairs = zip(*(scores(*of, batch.offsets.tolist()) for of in ((q, k), (t_q, t_k))))
    expected = sum(of_sequence(z_s, z_t) for z_s, z_t in pairs)
    same(total.detach(), expected.detach(), "the sum over sequences")
    for name, mine, theirs in zip("qk", *(torch.autograd.grad(loss, (q, k)) for loss in (total, expected))):
        same(mine, theirs, f"the gradient by the student's {name}")


def test_relations():
    def of_sequence(z_s, z_t):
        log_s, log_t = z_s.log_softmax(-1), z_t.log_softmax(-1)
        return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1).mean()  # of (H, T) rows

    compare_scores(relation_sum, of_sequence)


def test_attention_loss():
    compare_scores(attention_sum, F.mse_loss)


def test_learning_rate():
    rates = [learning_rate(step, 10, 2.0, 4) for step in range(10)]
    same(rates[:4], [0.5, 1.0, 1.5, 2.0], "the rise over 4 steps")
    same(rates[4:], [2 * (10 - step) / 6 for step in range(4, 10)], "the fall, to 0 after the last step")
    same(learning_rate(0, 10, 2.0, 0), 2.0, "without warm-up")
    assert learning_rate(4, 4, 2.0, 4) == 0, "no division by 0 where warm-up is all there is"


def test_matthews():
    rng = np.random.default_rng(0)
    two, three = rng.integers(0, 2, (2, 50)), rng.integers(0, 3, (2, 50))
    same(matthews(*two), np.corrcoef(*two)[0, 1], "two classes: the correlation of 0 and 1")
    x, y = (np.eye(3)[side] - np.eye(3)[side].mean(0) for side in three)
    same(matthews(*three), (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()), "three classes")
    assert matthews([0, 1, 2], [0, 1, 2]) == pytest.approx(1)
    assert matthews([1, 1, 1], [0, 1, 1]) == 0.0 and matthews([0, 1], [1, 1]) == 0.0, "a side of one class"


def test_f1():
    for ours, theirs, expected in (("The cat sat", "a cat sat down.", 0.8), ("to be to", "to be", 0.8),
                                   ("Paris", "paris!", 1.0), ("Rome", "Paris", 0.0), ("the", "a", 0.0)):
        same(f1(ours, theirs), expected, f"{ours!r} and {theirs!r}")


def test_accumulation():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1)).double().train()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 1, dtype=torch.float64)
    runtime = Runtime(torch.device("cpu"), "fp32")
    scaler = runtime.scaler()

    def part(rows, seed):
        micro = SimpleNamespace(x=x[rows], y=y[rows], seed=seed)
        micro.to = lambda device: micro
        return micro

    def loss_of(micro):  # the sum over its rows, divided by the rows of the whole step
        squares = (model(micro.x) - micro.y).square().sum()
        return squares / 9, {"squares": squares.detach()}

    def gradients():
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    model[0].p = 0.0
    whole = accumulate(model, loss_of, [part(slice(0, 9), 0)], scaler, runtime)
    expected = gradients()
    parts = accumulate(model, loss_of, [part(slice(0, 2), 1), part(slice(2, 9), 2)], scaler, runtime)
    same(gradients(), expected, "the gradient of two micro-batches is not that of the whole")
    same(parts.loss, whole.loss, "the loss")
    same(parts.terms["squares"], whole.terms["squares"], "the sum of the term")
    assert not parts.loss.requires_grad, "the sums are detached"
    model[0].p = 0.5
    accumulate(model, loss_of, [part(slice(0, 9), 7)], scaler, runtime)
    first = gradients()
    torch.randn(3)  # dropout depends on the micro-batch's seed alone
    accumulate(model, loss_of, [part(slice(0, 9), 7)], scaler, runtime)
    same(gradients(), first, "the same micro-batch, another dropout")
    none = accumulate(model, loss_of, [], scaler, runtime)
    assert none.loss == 0 and none.terms == {}, "a rank may have no micro-batch"
