"""What the parity tests share:
small random Hugging Face models, their outputs in packed order, and the comparison.
"""

import random

import torch
from torch import Tensor

import minibert
from minibert.hub.hf_names import CLASSES, to_hf

LENGTHS = [7, 1, 12, 7, 3]  # of the sequences in a test batch: equal ones apart, and one of a single token


def hf_model(architecture: str, head: str, seed: int, labels: int = 3):
    """A small Hugging Face model of a random shape, every tensor random:
    a LayerNorm of 1 and 0 could be missing.
    """
    import transformers

    draw = random.Random(seed)
    heads = draw.choice([1, 2, 3, 4])
    hidden, layers, feed_forward = (heads * draw.choice([8, 12, 16]), draw.choice([1, 2, 3]),
                                    draw.choice([20, 37, 48]))
    act = ["gelu", "gelu_new", "relu"][seed % 3]  # in turn, so that a few models have them all
    common = dict(vocab_size=draw.choice([40, 61]), max_position_embeddings=16, num_labels=labels)
    if architecture == "bert":
        config = transformers.BertConfig(
            hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=feed_forward, hidden_act=act, type_vocab_size=draw.choice([2, 3]),
            layer_norm_eps=[1e-12, 1e-5][seed % 2], **common)
    elif architecture == "mobilebert":
        # queries and keys in turn from the shared bottleneck, the block's own, and none: transformers runs
        # that where the bottleneck is as wide as the hidden states
        shared, own = [(True, False), (False, True), (False, False)][seed % 3]
        config = transformers.MobileBertConfig(
            hidden_size=hidden if not (shared or own) else hidden + 7, num_hidden_layers=layers,
            num_attention_heads=heads, intermediate_size=feed_forward, hidden_act=["relu", act][seed % 2],
            intra_bottleneck_size=hidden, embedding_size=draw.choice([5, 6]),
            num_feedforward_networks=draw.choice([1, 2, 4]), key_query_shared_bottleneck=shared,
            use_bottleneck_attention=own, type_vocab_size=draw.choice([2, 3]), layer_norm_eps=1e-5,
            normalization_type=["no_norm", "layer_norm"][seed % 2], classifier_activation=seed % 4 < 2,
            **common)
    else:
        config = transformers.DistilBertConfig(dim=hidden, n_layers=layers, n_heads=heads,
                                               hidden_dim=feed_forward, activation=act, **common)
    return randomise(getattr(transformers, CLASSES[architecture][head])(config).eval(), seed)


def randomise(model, seed: int):
    """Draws every tensor of a Hugging Face model anew, in place; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() == 2 and ("embeddings" not in name or "transformation" in name):
                # sharp attention, but not so sharp that its gradients vanish; without norms, states grow
                noise *= (0.5 if model.config.model_type == "mobilebert" else 1) / tensor.shape[1] ** 0.5
            elif name.endswith("bias"):
                noise *= 0.2  # larger, they would make all tokens alike, and attention's gradients cancel
            elif "norm" in name.lower():
                noise = 1 + 0.3 * noise
            tensor.copy_(noise)
    return model


def random_batch(vocab_size: int, segments: int, lengths: list[int] = LENGTHS, seed: int = 0):
    """Ids and segments, lists of lists;
    id 0 is left out, since Hugging Face takes no gradient of the padding's row.
    """
    draw = random.Random(seed)
    return ([[draw.randrange(1, vocab_size) for _ in range(n)] for n in lengths],
            [[draw.randrange(max(segments, 1)) for _ in range(n)] for n in lengths])


def hf_outputs(model, head: str, ids, segments, padded: bool) -> dict[str, Tensor]:
    """What the Hugging Face model makes of the sequences,
    one by one or as a padded batch, rows in packed order.
    """
    parts = []
    bert = model.config.model_type != "distilbert"  # token types and a pooler
    for chosen in [range(len(ids))] if padded else [[i] for i in range(len(ids))]:
        longest = max(len(ids[i]) for i in chosen)
        mask = torch.tensor([[1] * len(ids[i]) + [0] * (longest - len(ids[i])) for i in chosen])
        inputs = {"input_ids": torch.tensor([ids[i] + [0] * (longest - len(ids[i])) for i in chosen]),
                  "attention_mask": mask}
        if bert:
            inputs["token_type_ids"] = torch.tensor([segments[i] + [0] * (longest - len(ids[i]))
                                                     for i in chosen])
        out = model(**inputs, output_hidden_states=True)
        real = mask.bool()
        part = {f"hidden {i}": h[real] for i, h in enumerate(out.hidden_states)}
        if head == "encoder":
            part["last"] = out.last_hidden_state[real]
            if bert:
                part["pooled"] = out.pooler_output
        elif head == "pretraining":
            part |= {"mlm": out.prediction_logits[real], "nsp": out.seq_relationship_logits}
        elif head == "span":
            part["span"] = torch.stack([out.start_logits, out.end_logits], -1)[real]
        else:
            part["logits"] = out.logits[real] if head == "mlm" else out.logits
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def our_outputs(model, head: str, ids, segments) -> dict[str, Tensor]:
    """The same of our model and a packed batch."""
    batch = minibert.pack(ids, segments)
    encoder = model if head == "encoder" else model.encoder
    outputs = {f"hidden {i}": h for i, h in enumerate(encoder.trace(batch).hiddens)}
    out = model(batch)
    if head == "pretraining":
        return outputs | {"mlm": out[0], "nsp": out[1]}
    if head == "encoder":
        outputs["last"] = out
        if encoder.pooler is not None or getattr(encoder.config, "tanh_pooler", True) is False:
            outputs["pooled"] = encoder.pool(out, batch)
        return outputs
    return outputs | {"span" if head == "span" else "logits": out}


def gradients(model, outputs: dict[str, Tensor], architecture: str | None = None) -> dict[str, Tensor]:
    """Gradients of every parameter,
    of the outputs (not the hidden states) times fixed random weights, summed.

    With an `architecture`, our names become Hugging Face's.
    The random weights are drawn in fp32 for every precision.
    """
    generator = torch.Generator().manual_seed(5)
    scalar = sum((value * torch.randn(value.shape, generator=generator).to(value.dtype)).sum()
                 for name, value in outputs.items() if not name.startswith("hidden"))
    model.zero_grad()
    scalar.backward()
    named = {name: p.grad.clone() for name, p in model.named_parameters()}
    if architecture is None:
        return named
    if hasattr(model, "encoder"):
        return {to_hf(name, architecture): grad for name, grad in named.items()}
    return {to_hf(f"encoder.{name}", architecture).removeprefix(f"{architecture}."): g
            for name, g in named.items()}


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """For each tensor, the largest difference over the largest magnitude of theirs.

    The gradient of a key bias is exactly zero in theory: the bias adds the same to all scores of
    a query, which softmax does not see. What floating point leaves of it is noise, and is
    measured by the query bias's gradient instead.
    """
    assert ours.keys() == theirs.keys()
    found = {}
    for name in theirs:
        assert ours[name].shape == theirs[name].shape, name
        scale = theirs[name.replace(".key.bias", ".query.bias")
                       .replace(".k_lin.bias", ".q_lin.bias")].abs().max()
        assert scale > 0, f"{name} is zero: nothing is compared"
        found[name] = float((ours[name] - theirs[name]).detach().abs().max() / scale.detach())
    return found
