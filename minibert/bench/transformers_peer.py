"""The same steps on `transformers`, as its own users would set them up. bench.py compares with them.

They have SDPA attention, batches padded to their longest sequence, and the same precision, dropout and
optimiser. The losses are those of the original DistilBERT code, on the logits of all real tokens.
"""

import importlib.util

import torch
import torch.nn.functional as F

from minibert.common.errors import UserError
from minibert.common.runtime import Runtime
from minibert.distill.distilbert import DistilBERTWeights
from minibert.hub.hf_config import describe
from minibert.model.batch import IGNORE
from minibert.model.config import Config
from minibert.training.optim import set_learning_rate


def check_installed() -> None:
    """Raises `UserError` if `transformers` is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError("the comparison needs transformers: pip install 'minibert[peers]'")


def transformers_model(config: Config, kind: str = "AutoModelForMaskedLM"):
    """A model of `transformers` with the shape of `config`, random weights and SDPA attention.

    By default it is a masked language model. Raises `UserError` if `transformers` has no such shape.
    """
    import transformers
    raw = describe(config, "mlm", "hf", "float32")  # the config.json that such a model is saved with
    theirs = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    return getattr(transformers, kind).from_config(theirs, attn_implementation="sdpa")


def pad_sequences(sequences: list[torch.Tensor], value: int) -> torch.Tensor:
    """The sequences as one tensor (S, T), padded with `value` to the longest."""
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)


def at_rate(optimizer: torch.optim.Optimizer, lr: float) -> torch.optim.Optimizer:
    """The optimiser with a constant learning rate."""
    set_learning_rate(optimizer, lr)
    return optimizer


def clip_and_update(model, loss: torch.Tensor, optimizer, clip: float) -> float:
    """The second half of a step: backward, clip, update. Returns the loss."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


def transformers_step(student, teacher, inputs: list[torch.Tensor], labels: list[torch.Tensor],
                      weights: DistilBERTWeights, optimizer, runtime: Runtime, clip: float) -> float:
    """One distillation step on a padded batch; inputs and labels one tensor a sequence. Returns the loss."""
    ids, labels = (pad_sequences(rows, value).to(runtime.device)  # (S, T) each
                   for rows, value in ((inputs, 0), (labels, IGNORE)))
    lengths = torch.tensor([len(sequence) for sequence in inputs])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(runtime.device)
    optimizer.zero_grad()
    with runtime.autocast():
        with torch.no_grad():
            theirs = teacher(ids, attention_mask=mask, output_hidden_states=True)
        ours = student(ids, attention_mask=mask, output_hidden_states=True)
        z_s, z_t = ours.logits[mask], theirs.logits[mask]  # (N, V)
        temperature = weights.temperature
        kl = F.kl_div((z_s / temperature).log_softmax(-1), (z_t / temperature).softmax(-1),
                      reduction="batchmean")
        mlm = F.cross_entropy(z_s, labels[mask], ignore_index=IGNORE)
        h_s, h_t = ours.hidden_states[-1][mask], theirs.hidden_states[-1][mask]
        cosine = F.cosine_embedding_loss(h_s, h_t, torch.ones(len(h_s), device=h_s.device))
        loss = weights.kl * temperature**2 * kl + weights.mlm * mlm + weights.cosine * cosine
    return clip_and_update(student, loss, optimizer, clip)


def transformers_classifier_step(model, ids: list[torch.Tensor], segments: list[torch.Tensor],
                                 labels: torch.Tensor, optimizer, runtime: Runtime, clip: float) -> float:
    """One fine-tuning step of a sequence classifier on a padded batch. Returns the loss."""
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
