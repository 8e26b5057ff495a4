"""Exports models to ONNX files, which take padded batches and are run by ONNX Runtime.

The models of minibert take packed batches without padding. Programs that run ONNX files give a table of token
ids (S, T) and a mask. So the class `Padded` is exported. `Padded` has the modules of the model, but its
attention works on padded rows. The export needs the `onnx` extra.
"""

import contextlib
import importlib
import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

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
OPSET = 18  # this version of the ONNX operators is the one that torch writes without a conversion
# an exported file is checked with these batches: lengths of sequences, and length to which they are padded
CHECKED = (((1,), 1), ((20,), 20), ((7, 3), 8), ((2, 1, 2), 2), ((20, 9, 1), 21))
TOLERANCE = 1e-5  # `deviation` of the fp32 file must not be larger


def attend_padded(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Attention inside each row of a padded batch. `q`, `k`, `v` and the result are (S, H, T, E), and `keep`
    is (S, T) bool: True for tokens, False for padding.

    No token attends to padding. The results for padding have no meaning.
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (S, H, T, T)
    # The smallest finite number is used, and not -inf. So a row that may attend to no token gives the mean of
    # all values, and not NaN.
    scores = scores.masked_fill(~keep[:, None, None, :], torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


def padded_layer(layer: Layer, x: Tensor, keep: Tensor) -> Tensor:
    """The output of `layer` in eval mode for a padded batch. `x` and the result are (S, T, D), and `keep` is
    (S, T) bool.
    """
    c = layer.config
    q, k, v = (project(x).unflatten(-1, (c.heads, c.head_size)).transpose(1, 2)  # (S, H, T, E)
               for project in (layer.query, layer.key, layer.value))
    context = attend_padded(q, k, v, keep).transpose(1, 2).flatten(-2)  # (S, T, D)
    x = layer.attention_norm(x + layer.out(context))
    return layer.output_norm(x + layer.down(activation(c.activation, layer.up(x))))


class Padded(nn.Module):
    """A model that takes padded batches. Its inputs are the token ids, the mask and the token types, each
    (S, T) int64. It returns the tensors that `OUTPUTS` names.

    The mask is 1 for tokens and 0 for padding. Outputs for tokens are (S, T, ...), and the output of a
    classifier is (S, K). The outputs for padding have no meaning. The weights are shared with `model`, not
    copied. The module works in eval mode only.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor,
                token_type_ids: Tensor | None = None) -> tuple[Tensor, ...]:
        """The outputs, in the order of `OUTPUTS`."""
        encoder, keep = encoder_of(self.model), attention_mask != 0
        # the embeddings treat each token by itself, so they also work on a table (S, T) of tokens
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        lengths = torch.full(input_ids.shape[:1], input_ids.shape[1])
        x = encoder.embed(Batch(input_ids, positions, token_type_ids, None, lengths))  # (S, T, D)
        for layer in encoder.layers:
            x = padded_layer(layer, x, keep)
        if isinstance(self.model, MaskedLM):
            return (self.model.mlm.logits(x, encoder.word.weight),)  # (S, T, V)
        if isinstance(self.model, Classifier):
            # the first tokens of all rows form a packed batch of sequences with one token each
            firsts = torch.arange(input_ids.shape[0] + 1, device=input_ids.device)
            return (self.model.classify(x[:, 0], Batch(None, None, None, firsts, None)),)  # (S, K)
        if isinstance(self.model, Span):
            return tuple(self.model.span(x).unbind(-1))  # start and end logits, (S, T) each
        return (x,)


def pad(batch: Batch, pad_id: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """The token ids, the mask and the token types of a packed batch as padded tables (S, length) int64. The
    padding is at the end of each row.
    """
    keep = torch.arange(length) < batch.lengths[:, None]  # (S, length)
    ids, segments = torch.full(keep.shape, pad_id), torch.zeros(keep.shape, dtype=torch.int64)
    ids[keep], segments[keep] = batch.ids, batch.segments
    return ids, keep.long(), segments


@torch.no_grad()
def packed_outputs(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """The outputs of the packed model in the order of `OUTPUTS`. Each output is (N, ...), or (S, K) for a
    classifier.
    """
    out = model(batch)
    return tuple(out.unbind(-1)) if isinstance(model, Span) else (out,)


def on_tokens(model: nn.Module, outputs: tuple, mask: Tensor) -> tuple[Tensor, ...]:
    """Removes the padding from padded outputs, so that they have the form of `packed_outputs`."""
    outputs = tuple(torch.as_tensor(out) for out in outputs)
    return outputs if isinstance(model, Classifier) else tuple(out[mask.bool()] for out in outputs)


def samples(model: nn.Module) -> list[tuple[Batch, int]]:
    """Random batches with the lengths in `CHECKED`. With each batch comes the length to which it is padded.
    """
    config, rng, most = model.config, np.random.default_rng(0), model.config.max_positions
    made = []
    for lengths, padded in CHECKED:
        ids, segments = ([rng.integers(below, size=min(n, most)).tolist() for n in lengths]
                         for below in (config.vocab_size, max(1, config.segments)))
        made.append((pack(ids, segments), min(padded, most)))
    return made


def input_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the file's inputs, each (S, T) int64. token_type_ids is an input only if the model has
    token types.
    """
    return ("input_ids", "attention_mask", "token_type_ids")[:3 if model.config.segments else 2]


def packages():
    """The packages onnx and onnxruntime. Raises `UserError` if a package that the export needs is missing, or
    if torch is older than 2.13. Older versions were not tested, and a file from torch 2.6 takes only one
    batch size.
    """
    try:
        onnx, onnxruntime, _ = map(importlib.import_module, ("onnx", "onnxruntime", "onnxscript"))
    except ImportError as error:
        raise UserError(f"an ONNX export needs the package {error.name}, which is in the onnx extra: "
                        "pip install -e '.[onnx]'") from None
    if torch.__version__ < (2, 13):
        raise UserError(f"an ONNX export needs torch 2.13 or newer; this is {torch.__version__}")
    return onnx, onnxruntime


@contextlib.contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Hides the warnings and log lines of other packages, which say nothing that helps the user."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def write_onnx(model: nn.Module, path: Path) -> None:
    """Writes the ONNX file in fp32 and does not check it. The file takes any batch size and any length up to
    the model's number of positions.
    """
    onnx, _ = packages()
    names, head = input_names(model), head_of(model)
    example = tuple(torch.ones(2, min(4, model.config.max_positions), dtype=torch.int64) for _ in names)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=model.config.max_positions)}
    with quiet("torch.onnx"):  # hides messages of torch: `save_onnx` checks the file itself
        torch.onnx.export(Padded(model).eval(), example, path, input_names=names,
                          output_names=OUTPUTS[head], dynamic_shapes=tuple(axes for _ in names),
                          opset_version=OPSET, dynamo=True, external_data=False, verbose=False)
    proto = onnx.load(path)
    tidy(proto)
    onnx.save(proto, path)


def tidy(proto) -> None:
    """Changes an ONNX model in place: removes notes about the source code, and stores the weights of products
    in transposed form.

    For every operator, torch stores the file and the line of the source code, with paths of this machine.
    torch stores the weights of `nn.Linear` as (out, in), and a Transpose operator follows each of them.
    Quantisation needs a weight that goes directly into its product. The tied word table is not changed,
    because the embeddings also use its rows.
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
    """Converts the matrix products of the fp32 file `source` to int8 and writes `target`. The weights of each
    output of a product have their own scale. The scale of the activations is computed for each batch.

    With `reduce_range`, the weights have 7 bits. Some processors add two products in 16 bits, which may
    overflow without an error if the weights have 8 bits (`processor.sums_bytes_in_32_bits`). All activations
    of a batch have the same scale. So the outputs of a sentence change slightly with the other sentences in
    its batch. With `minibert.fast` they do not change.
    """
    packages()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet(""):  # the hidden warning recommends an optimisation that changes nothing here
        quantize_dynamic(source, target, per_channel=True, reduce_range=reduce_range,
                         weight_type=QuantType.QInt8)


def open_file(path: Path):
    """Opens an ONNX file in ONNX Runtime on the CPU. Returns the session for `run_file`."""
    _, onnxruntime = packages()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_file(session, model: nn.Module, batch: Batch, length: int) -> tuple[Tensor, ...]:
    """The outputs of the ONNX file of `model` for a batch that is padded to `length`, in the form of
    `packed_outputs`.
    """
    inputs = pad(batch, model.config.pad_id, length)
    feed = {name: tensor.numpy() for name, tensor in zip(input_names(model), inputs)}
    return on_tokens(model, session.run(OUTPUTS[head_of(model)], feed), inputs[1])


def deviation(model: nn.Module, path: Path) -> float:
    """The largest difference between the outputs of the file in ONNX Runtime and those of the packed model,
    for the batches of `samples`.

    If the largest output of a batch is above 1, the difference is divided by it. Padding is left out, because
    its outputs have no meaning.
    """
    session, worst = open_file(path), 0.0
    for batch, length in samples(model):
        for expected, actual in zip(packed_outputs(model, batch), run_file(session, model, batch, length)):
            if expected.shape != actual.shape:
                return math.inf
            apart = float((expected - actual).abs().max() / expected.abs().max().clamp(min=1))
            worst = max(worst, apart if math.isfinite(apart) else math.inf)  # NaN counts as infinite
    return worst


def save_onnx(model: nn.Module, folder: str | Path, tokenizer: Tokenizer | None = None,
              bits: int | None = None, judge: Callable[[Path], None] | None = None) -> float:
    """Writes the ONNX file, Hugging Face's config.json and the tokenizer's files. The ONNX file is
    model.onnx. If `bits` (8 or 7) is given, it is model_quantized.onnx, whose weights have this number of
    bits (`quantize_file`). Returns the `deviation` of the file from the model. `judge` takes the path of the
    quantised file before it gets its final name, and raises `UserError` to refuse it.

    The fp32 file is checked in ONNX Runtime before any file gets its final name. So a model.onnx in `folder`
    is complete, and its outputs are those of the model. Raises `UserError` and writes nothing if the `onnx`
    extra is missing, the head is not in `OUTPUTS`, `transformers` does not support the model, a check fails,
    or `judge` raises `UserError`.
    """
    model = getattr(model, "_orig_mod", model).eval()  # torch.compile keeps the model here
    config, head, folder = model.config, head_of(model), Path(folder)
    if config.architecture == "mobilebert":
        raise UserError("minibert cannot export a MobileBERT to ONNX; save it in Hugging Face's format, "
                        "which other exporters read")
    if head not in OUTPUTS:
        raise UserError(f"minibert cannot export a {head} model to ONNX; choose one of the heads "
                        f"{', '.join(OUTPUTS)}")
    packages()
    text = dump(describe(config, head, "float32"))
    with disk_errors(folder), folder_within(folder) as made:
        file = made / "model.onnx"
        write_onnx(model, file)
        apart = deviation(model, file)
        if not apart <= TOLERANCE:
            raise UserError(f"model.onnx differs from the model by {apart:.1e} in ONNX Runtime, more than "
                            f"{TOLERANCE}; nothing was saved")
        if bits is not None:
            fp32, file = file, made / "model_quantized.onnx"
            quantize_file(fp32, file, bits == 7)
            fp32.unlink()
            apart = deviation(model, file)
            if judge:
                judge(file)
        if tokenizer is not None:
            tokenizer.save(made, config.max_positions)
        (made / "config.json").write_text(text, encoding="utf-8")
        for path in sorted(made.iterdir(), key=lambda path: path == file):
            os.replace(path, folder / path.name)
    return apart
