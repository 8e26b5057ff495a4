"""A step, a student and a teacher to try losses on, and all kinds of MobileBERT; what a loss gives for steps
cut in any way, and how large its tensors get.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from minibert.common.runtime import Runtime
from minibert.data.loader import cut
from minibert.model.batch import Step
from minibert.distill.methods import METHODS
from minibert.distill.students import distilbert_of, make_student
from minibert.model.config import MobileConfig
from minibert.model.init import init_weights
from minibert.model.heads import MaskedLM
from minibert.training.optim import set_learning_rate
from minibert.training.step import accumulate, update

TINY_MOBILE = MobileConfig(vocab_size=60, hidden_size=20, layers=2, heads=3, intermediate_size=16,
                           max_positions=32, embedding_size=7, bottleneck_size=12, feed_forwards=3)
MOBILE_KINDS = [replace(TINY_MOBILE, attention_input=attention_input, norm=norm, activation=activation)
                for attention_input, (norm, activation) in product(
                    ("shared", "hidden", "bottleneck"), (("no_norm", "relu"), ("layer_norm", "gelu_tanh")))]


V = 60  # pieces of TOKENIZER and ids of FakeCorpus
TOKENIZER = SimpleNamespace(special=np.arange(V) < 5, continuation=np.zeros(V, bool), vocab_size=V,
                            mask_id=4, cls_id=2, sep_id=3)


class FakeCorpus:
    """300 sequences of 1 to 30 tokens; each begins with a token that tells which it is."""

    def __init__(self, n=300):
        rng = np.random.default_rng(0)
        self.data = [rng.integers(5, V, rng.integers(1, 31)).astype(np.uint16) for _ in range(n)]

    def __len__(self):
        return len(self.data)

    def lengths(self, indices):
        return np.array([len(self.data[i]) for i in indices], dtype=np.int64)

    def tokens(self, i):
        return self.data[i]


def rows_of(step):
    """The sequences of a step as a sorted list of (inputs, labels)."""
    found = []
    for micro in step.micro_batches:
        ends = micro.batch.offsets.tolist()
        for start, end in zip(ends, ends[1:]):
            assert micro.batch.positions[start:end].tolist() == list(range(end - start))
            found.append((micro.batch.ids[start:end].tolist(), micro.labels[start:end].tolist()))
    return sorted(found)


def data(micro_tokens: int, ranks: int = 1) -> list[Step]:
    """Nine sequences of very unequal length, masks crowded into the short ones; one Step per rank."""
    rng = np.random.default_rng(1)
    lengths = np.array([3, 30, 4, 17, 3, 25, 2, 9, 30])
    ids = rng.integers(5, 60, lengths.sum())
    selected = rng.random(len(ids)) < np.repeat(np.where(lengths < 10, 0.7, 0.05), lengths)
    inputs = np.where(selected, 4, ids)
    return [Step(cut(ids, lengths, inputs, selected, micro_tokens, (0,), rank, ranks), len(ids),
                 int(selected.sum()), len(lengths)) for rank in range(ranks)]


def gradients(loss_of: Callable, student: nn.Module, steps: list[Step]) -> tuple[dict[str, Tensor], Tensor]:
    """The loss and its terms, summed over micro-batches and ranks, and the gradient of all weights in one;
    `loss_of(step, micro)`.
    """
    student.zero_grad()
    totals = {}
    for step in steps:
        for micro in step.micro_batches:
            loss, sums = loss_of(step, micro)
            loss.backward()
            for name, value in {"loss": loss.detach(), **sums}.items():
                totals[name] = totals.get(name, 0) + value
    return totals, torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


CPU = Runtime(torch.device("cpu"), "fp32")


def take_step(model: nn.Module, loss_of: Callable, step: Step, counts: dict[str, int], optimizer, lr: float,
              clip: float = 5.0, scaler=None, factors: list[float] | None = None) -> dict:
    """One optimiser step in fp32; its figures."""
    scaler = scaler or CPU.scaler()
    set_learning_rate(optimizer, lr, factors)
    sums = accumulate(model, loss_of, step.micro_batches, scaler, CPU)
    return update(model, optimizer, sums, counts, scaler, CPU, clip)[0]


def loss_of(method: str, student: nn.Module, teacher: nn.Module | None, step: Step, weights=None) -> Callable:
    """From a micro-batch of a step to the loss of a method and the sums of its terms."""
    weights = weights or METHODS[method].weights()
    counts = counts_of(method, step, weights)
    return partial(METHODS[method].loss, student, teacher, weights=weights, counts=counts)


def counts_of(method: str, step: Step, weights=None) -> dict[str, int]:
    """What the sums of a method's terms are divided by in a step."""
    return METHODS[method].counts(step, weights or METHODS[method].weights())


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Inside, `elements` is the size of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self.elements = max(self.elements, t.numel())
        return out


def student_and_teacher(tiny_config, dtype=torch.float64):
    """A random teacher with random biases and norms, and its student, moved away from it; dropout off."""
    teacher = init_weights(MaskedLM(replace(tiny_config, dropout=0.0, layers=4, vocab_size=60)))
    for p in teacher.parameters():
        p.data += 0.1 * torch.randn_like(p)
    student = make_student(teacher, distilbert_of(teacher.config), layer_map=[0, 3])
    for p in student.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return student.to(dtype).train(), teacher.to(dtype).eval().requires_grad_(False)


def plain_adamw(model, decay, beta2):
    """AdamW in plain torch; biases and norms do not decay."""
    decaying, others = [], []
    for name, p in model.named_parameters():
        (others if name.endswith("bias") or "norm" in name else decaying).append(p)
    return torch.optim.AdamW([{"params": decaying, "weight_decay": decay},
                              {"params": others, "weight_decay": 0.0}], betas=(0.9, beta2), eps=1e-6)


def plain_step(model, optimizer, terms, loss, clip, rate):
    """One step in plain torch: gradient, clipping, rate, update. Returns what the run's row should say."""
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return {"loss": loss.item(), "grad_norm": norm.item(), "lr": rate,
            **{name: term.item() for name, term in terms.items()}}
