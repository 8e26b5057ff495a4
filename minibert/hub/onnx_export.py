"""ONNX files of models: the packed models' weights over padded batches, as every ONNX runtime feeds them.

A packed batch has no padding and needs none. Elsewhere an input is a table of token ids (S, T) with a mask,
so `Padded` is exported: the same modules, with attention over the table. Needs the
`onnx` extra.
"""

import importlib
import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from minibert.common.disk import disk_errors, folder_within
from minibert.common.errors import UserError
from minibert.data.tokenizer import Tokenizer
from minibert.hub.hf_config import describe, dump
from minibert.hub.load_save import head_of
from minibert.model.batch import Batch, pack
from minibert.model.encoder import Layer, activation
from minibert.model.heads import Classifier, MaskedLM, Span, encoder_of

OUTPUTS = {"encoder": ("last_hidden_state",), "mlm": ("logits",), "classification": ("logits",),
           "span": ("start_logits", "end_logits")}
OPSET = 18  # what torch writes without converting; LayerNormalization is one operator since 17
CHECKED = ((1, 1), (1, 20), (2, 7), (3, 2), (3, 20))  # (S, T) that a file is tried with
TOLERANCE = 1e-5  # fp32, as everywhere; of the largest output where that is above 1


class Quantization(NamedTuple):
    """How a file becomes int8, for `quantize_file`, and who judges it before it gets its name."""
    reduce_range: bool
    judge: Callable[[Path], None] | None = None


def attend_padded(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Attention inside each row of a padded batch; q, k, v and the result (S, H, T, E), `keep` (S, T) bool.

    No token attends to one that `keep` drops. The rows of dropped tokens have no meaning.
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (S, H, T, T)
    # the smallest number, not -inf: a row without any token is then a plain mean instead of NaN
    scores = scores.masked_fill(~keep[:, None, None, :], torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


def padded_layer(layer: Layer, x: Tensor, keep: Tensor) -> Tensor:
    """`layer` in eval mode over a padded batch: x and the result are (S, T, D), `keep` (S, T) bool."""
    c = layer.config
    q, k, v = (project(x).unflatten(-1, (c.heads, c.head_size)).transpose(1, 2)  # (S, H, T, E)
               for project in (layer.query, layer.key, layer.value))
    context = attend_padded(q, k, v, keep).transpose(1, 2).flatten(-2)  # (S, T, D)
    x = layer.attention_norm(x + layer.out(context))
    return layer.output_norm(x + layer.down(activation(c.activation, layer.up(x))))


class Padded(nn.Module):
    """A model over padded input: ids, mask and token types (S, T) int64 -> the tensors of `OUTPUTS`.

    The mask is 1 at tokens and 0 at padding. Per-token outputs are (S, T, ...), a classifier's (S, K). The
    outputs at padding have no meaning. The weights are the model's own, not copies; for eval mode only.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor,
                token_type_ids: Tensor | None = None) -> tuple[Tensor, ...]:
        """The outputs, in the order of `OUTPUTS`."""
        encoder, keep = encoder_of(self.model), attention_mask != 0
        # embed works token by token, so a table does as well as a stream
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        lengths = torch.full(input_ids.shape[:1], input_ids.shape[1])
        x = encoder.embed(Batch(input_ids, positions, token_type_ids, None, lengths))  # (S, T, D)
        for layer in encoder.layers:
            x = padded_layer(layer, x, keep)
        if isinstance(self.model, MaskedLM):
            return (self.model.mlm.logits(x, encoder.word.weight),)  # (S, T, V)
        if isinstance(self.model, Classifier):
            # the first tokens alone are a packed batch of sequences of one token
            firsts = torch.arange(input_ids.shape[0] + 1, device=input_ids.device)
            return (self.model.classify(x[:, 0], Batch(None, None, None, firsts, None)),)  # (S, K)
        if isinstance(self.model, Span):
            return tuple(self.model.span(x).unbind(-1))  # (S, T) each
        return (x,)


def pad(batch: Batch, pad_id: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and token types (S, length) int64 of a packed batch; the tokens first in each row."""
    keep = torch.arange(length) < batch.lengths[:, None]  # (S, length)
    ids, segments = torch.full(keep.shape, pad_id), torch.zeros(keep.shape, dtype=torch.int64)
    ids[keep], segments[keep] = batch.ids, batch.segments
    return ids, keep.long(), segments


@torch.no_grad()
def packed_outputs(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """The outputs of the packed model under the names of `Padded`: (N, ...) each, or (S, K) of a classifier.
    """
    out = model(batch)
    return tuple(out.unbind(-1)) if isinstance(model, Span) else (out,)


def on_tokens(model: nn.Module, outputs: tuple, mask: Tensor) -> tuple[Tensor, ...]:
    """Padded outputs without the padding, comparable with `packed_outputs`."""
    outputs = tuple(torch.as_tensor(out) for out in outputs)
    return outputs if isinstance(model, Classifier) else tuple(out[mask.bool()] for out in outputs)


def samples(model: nn.Module) -> list[tuple[Batch, int]]:
    """Random batches of the shapes in `CHECKED`, of unequal sequences, and the length to pad each to."""
    config, rng = model.config, np.random.default_rng(0)
    made = []
    for number, length in CHECKED:
        length = min(length, config.max_positions)
        lengths = [length, *rng.integers(1, length + 1, number - 1)]  # one fills its row
        made.append((pack([rng.integers(config.vocab_size, size=n).tolist() for n in lengths],
                          [rng.integers(max(1, config.segments), size=n).tolist() for n in lengths]), length))
        if length < config.max_positions and number > 1:
            made.append((made[-1][0], length + 1))  # and one column that is padding everywhere
    return made


def input_names(model: nn.Module) -> tuple[str, ...]:
    """The inputs of the file, (batch, length) int64 each; token types only where the model has some."""
    return ("input_ids", "attention_mask", "token_type_ids")[:3 if model.config.segments else 2]


def packages():
    """The packages onnx and onnxruntime; `UserError` where one that the export needs is not installed, or
    torch is older than was tested (2.6 takes the batch of its sample for that of every call).
    """
    try:
        onnx, onnxruntime, _ = map(importlib.import_module, ("onnx", "onnxruntime", "onnxscript"))
    except ImportError as error:
        raise UserError(f"an ONNX export needs the package {error.name}, which is in the onnx extra: "
                        "pip install -e '.[onnx]'") from None
    if torch.__version__ < (2, 13):
        raise UserError(f"an ONNX export needs torch 2.13 or newer; this is {torch.__version__}")
    return onnx, onnxruntime


def write_onnx(model: nn.Module, path: Path) -> None:
    """Writes the file alone, unchecked: fp32, any batch, any length up to the model's positions."""
    onnx, _ = packages()
    names, head = input_names(model), head_of(model)
    example = tuple(torch.ones(2, min(4, model.config.max_positions), dtype=torch.int64) for _ in names)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=model.config.max_positions)}
    # torch's warnings and log lines are about its own workings and torchvision; the file is checked later
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(Padded(model).eval(), example, path, input_names=names,
                              output_names=OUTPUTS[head], dynamic_shapes=tuple(axes for _ in names),
                              opset_version=OPSET, dynamo=True, external_data=False, verbose=False)
    finally:
        logger.setLevel(level)
    proto = onnx.load(path)
    tidy(proto)
    onnx.save(proto, path)


def tidy(proto) -> None:
    """Removes notes about the source code and stores weights in the order of their product; works in place.

    At every operator torch stores the file and line of its source, with the paths of the machine. It stores
    the weights of `nn.Linear` as (out, in) with a Transpose behind each, but quantisers look for a matrix.
    The tied word table stays, because its rows are looked up, too.
    """
    onnx, _ = packages()
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]
    uses = Counter(name for node in graph.node for name in node.input)
    weights = {tensor.name: tensor for tensor in graph.initializer
               if len(tensor.dims) == 2 and uses[tensor.name] == 1}
    transposed = {node.output[0]: node for node in graph.node
                  if node.op_type == "Transpose" and node.input[0] in weights}
    for node in transposed.values():
        tensor = weights[node.input[0]]
        turned = np.ascontiguousarray(onnx.numpy_helper.to_array(tensor).T)
        tensor.CopyFrom(onnx.numpy_helper.from_array(turned, tensor.name))
        graph.node.remove(node)
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in transposed:
                node.input[i] = transposed[name].input[0]


def quantize_file(source: Path, target: Path, reduce_range: bool) -> None:
    """Writes an fp32 file's products in int8: weights with a scale for each output, activations dynamic.

    `reduce_range`: weights of 7 bits, for processors that add two products in 16 bits, which otherwise
    overflow without a word (`processor.sums_bytes_in_32_bits`). Activations have one scale for a whole batch,
    so that there, unlike in `minibert.fast`, sentences of a batch change each other's last digits.
    """
    packages()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it asks for a graph optimisation that changes nothing here
    try:
        quantize_dynamic(source, target, per_channel=True, reduce_range=reduce_range,
                         weight_type=QuantType.QInt8)
    finally:
        root.setLevel(level)


def open_file(path: Path):
    """The file in ONNX Runtime on the CPU: a session for `run_file`."""
    _, onnxruntime = packages()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_file(session, model: nn.Module, batch: Batch, length: int) -> tuple[Tensor, ...]:
    """What the file of `model` gives for a batch padded to `length`, as `packed_outputs` has it."""
    inputs = pad(batch, model.config.pad_id, length)
    feed = {name: tensor.numpy() for name, tensor in zip(input_names(model), inputs)}
    return on_tokens(model, session.run(OUTPUTS[head_of(model)], feed), inputs[1])


def deviation(model: nn.Module, path: Path) -> float:
    """The largest difference between the file in ONNX Runtime and the packed model, over `samples`.

    As a share of the largest output where that is above 1; padding is left out, as its outputs mean nothing.
    """
    session, worst = open_file(path), 0.0
    for batch, length in samples(model):
        for ours, theirs in zip(packed_outputs(model, batch), run_file(session, model, batch, length)):
            if ours.shape != theirs.shape:
                return math.inf
            apart = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))
            worst = max(worst, apart if math.isfinite(apart) else math.inf)  # a NaN is no small difference
    return worst


def save_onnx(model: nn.Module, folder: str | Path, tokenizer: Tokenizer | None = None,
              int8: Quantization | None = None) -> float:
    """Writes model.onnx, or with `int8` model_quantized.onnx, Hugging Face's config.json and the tokenizer's
    files; returns the `deviation` found, in int8 that of random tokens.

    The fp32 file is checked in ONNX Runtime before anything gets its name, so a model.onnx in `folder` is
    complete and computes what the model does. `UserError` where the extra is missing, the head is not in
    `OUTPUTS`, the shape has no counterpart in `transformers`, a check fails, or `int8.judge` raises one; then
    nothing is written.
    """
    model = getattr(model, "_orig_mod", model).eval()  # what torch.compile wraps
    config, head, folder = model.config, head_of(model), Path(folder)
    if config.architecture == "mobilebert":
        raise UserError("a MobileBERT has no ONNX form here; save it in Hugging Face's format, which other "
                        "exporters read")
    if head not in OUTPUTS:
        raise UserError(f"a {head} model has no ONNX form here; choose one of the heads {', '.join(OUTPUTS)}")
    packages()
    text = dump(describe(config, head, "hf", "float32"))
    with disk_errors(folder), folder_within(folder) as made:
        file = made / "model.onnx"
        write_onnx(model, file)
        apart = deviation(model, file)
        if not apart <= TOLERANCE:
            raise UserError(f"model.onnx differs from the model by {apart:.1e} in ONNX Runtime, more than "
                            f"{TOLERANCE}; nothing was saved")
        if int8 is not None:
            fp32, file = file, made / "model_quantized.onnx"
            quantize_file(fp32, file, int8.reduce_range)
            fp32.unlink()
            apart = deviation(model, file)
            if int8.judge:
                int8.judge(file)
        if tokenizer is not None:
            tokenizer.save(made, config.max_positions)
        (made / "config.json").write_text(text, encoding="utf-8")
        for path in sorted(made.iterdir(), key=lambda path: path == file):
            os.replace(path, folder / path.name)
    return apart
