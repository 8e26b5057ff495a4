"""Runs training steps with `transformers`. bench.py compares the speed of these steps with the speed of
minibert's steps.

A batch is padded to its longest sequence. Precision, dropout and optimiser are the same as in minibert's
steps. The distillation losses are the same as in the original DistilBERT code: the KL and the cosine loss are
averaged over all tokens except padding, and the MLM loss over the masked tokens.
"""

import importlib.util

import torch
import torch.nn.functional as F

from minibert.common.errors import UserError
from minibert.common.runtime import Runtime
from minibert.distill.distilbert import DistilBERTWeights
from minibert.hub.hf_config import describe, difference
from minibert.model.batch import IGNORE
from minibert.model.config import Config
from minibert.training.optim import set_learning_rate


def check_peer(*configs: Config) -> None:
    """Raises `UserError` if `transformers` is not installed, or does not support one of the models."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError("the comparison needs transformers: pip install 'minibert[peers]'")
    for config in configs:
        if reason := difference(config):
            raise UserError(f"transformers does not support one of the models ({reason}): "
                            "give another preset (or --no-peer to bench.py train)")


def transformers_model(config: Config, kind: str = "AutoModelForMaskedLM"):
    """Makes a model of `transformers` with the shape of `config`, random weights and SDPA attention. `kind`
    is the name of a class of `transformers`.
    """
    import transformers
    raw = describe(config, "mlm", "float32")
    peer_config = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    return getattr(transformers, kind).from_config(peer_config, attn_implementation="sdpa")


def pad_sequences(sequences: list[torch.Tensor], value: int) -> torch.Tensor:
    """Returns S sequences as one tensor (S, T), padded with `value` to the largest length T."""
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)


def at_rate(optimizer: torch.optim.Optimizer, lr: float) -> torch.optim.Optimizer:
    """Sets a constant learning rate and returns the optimiser."""
    set_learning_rate(optimizer, lr)
    return optimizer


def clip_and_update(model, loss: torch.Tensor, optimizer, clip: float) -> float:
    """Runs the backward pass, clips the gradient and updates the weights. Returns the loss."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


def transformers_step(student, teacher, inputs: list[torch.Tensor], labels: list[torch.Tensor],
                      weights: DistilBERTWeights, optimizer, runtime: Runtime, clip: float) -> float:
    """Runs one distillation step on a padded batch and returns the loss. `inputs` and `labels` have one
    tensor for each of S sequences. In the comments, T is the largest length, N the number of tokens without
    padding, V the size of the vocabulary and D the hidden size.
    """
    ids, labels = (pad_sequences(rows, value).to(runtime.device)  # two tensors (S, T)
                   for rows, value in ((inputs, 0), (labels, IGNORE)))
    lengths = torch.tensor([len(sequence) for sequence in inputs])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(runtime.device)
    optimizer.zero_grad()
    with runtime.autocast():
        with torch.no_grad():
            teacher_out = teacher(ids, attention_mask=mask, output_hidden_states=True)
        student_out = student(ids, attention_mask=mask, output_hidden_states=True)
        z_s, z_t = student_out.logits[mask], teacher_out.logits[mask]  # (N, V)
        temperature = weights.temperature
        kl = F.kl_div((z_s / temperature).log_softmax(-1), (z_t / temperature).softmax(-1),
                      reduction="batchmean")
        mlm = F.cross_entropy(z_s, labels[mask], ignore_index=IGNORE)
        h_s, h_t = student_out.hidden_states[-1][mask], teacher_out.hidden_states[-1][mask]  # (N, D)
        cosine = F.cosine_embedding_loss(h_s, h_t, torch.ones(len(h_s), device=h_s.device))
        loss = weights.kl * temperature**2 * kl + weights.mlm * mlm + weights.cosine * cosine
    return clip_and_update(student, loss, optimizer, clip)


def transformers_classifier_step(model, ids: list[torch.Tensor], segments: list[torch.Tensor],
                                 labels: torch.Tensor, optimizer, runtime: Runtime, clip: float) -> float:
    """Runs one fine-tuning step of a classifier on a padded batch, and returns the loss. `ids` and `segments`
    have one tensor for each sequence.
    """
    lengths = torch.tensor([len(sequence) for sequence in ids])
    inputs = {"input_ids": pad_sequences(ids, 0),
              "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long()}
    if model.config.model_type != "distilbert":
        inputs["token_type_ids"] = pad_sequences(segments, 0)
    optimizer.zero_grad()
    with runtime.autocast():
        loss = model(**{name: x.to(runtime.device) for name, x in inputs.items()},
                     labels=labels.to(runtime.device)).loss
    return clip_and_update(model, loss, optimizer, clip)
