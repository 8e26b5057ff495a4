"""Exports models to ONNX files for ONNX Runtime. The exported files take padded batches, so `Padded` wraps a
model of minibert and computes attention on padded rows.

In the shapes, S is the number of sequences, T the length of a padded row, H the number of heads, E the head
size, D the hidden size, V the vocabulary size and K the number of classes.
"""

import contextlib
import importlib
import logging
import math
import os
import warnings
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
OPSET = 18  # the version of the ONNX operators that torch writes without a conversion
# `deviation` runs an exported file on these batches: (lengths of the sequences, length of the padded rows)
CHECKED = (((1,), 1), ((20,), 20), ((7, 3), 8), ((2, 1, 2), 2), ((20, 9, 1), 21))
TOLERANCE = 1e-5  # an fp32 file is refused if its `deviation` from the model is larger


def attend_padded(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Computes attention inside each row of a padded batch. `q`, `k`, `v` and the result have the shape
    (S, H, T, E): S sequences, H heads, T tokens of a padded row and head size E. `keep` (S, T) is True for
    tokens and False for padding.
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (S, H, T, T)
    # Padding gets the lowest finite score. With -inf, the softmax would be NaN if a row has only padding.
    scores = scores.masked_fill(~keep[:, None, None, :], torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


def padded_layer(layer: Layer, x: Tensor, keep: Tensor) -> Tensor:
    """Returns the output of `layer` in eval mode for a padded batch. `x` and the result are (S, T, D): S
    sequences, T tokens of a padded row and hidden size D. `keep` (S, T) is True for tokens and False for
    padding. In the comments, H is the number of heads and E the head size.
    """
    c = layer.config
    q, k, v = (project(x).unflatten(-1, (c.heads, c.head_size)).transpose(1, 2)  # (S, H, T, E)
               for project in (layer.query, layer.key, layer.value))
    context = attend_padded(q, k, v, keep).transpose(1, 2).flatten(-2)  # (S, T, D)
    x = layer.attention_norm(x + layer.out(context))
    return layer.output_norm(x + layer.down(activation(c.activation, layer.up(x))))


class Padded(nn.Module):
    """Wraps a model of minibert, so that it takes padded batches. Only eval mode is supported.

    S sequences are padded to T tokens. The inputs are the token ids, the mask (1 for tokens, 0 for padding)
    and the token types, each (S, T) int64. The output of a classifier is (S, K) for K classes. Any other
    model has outputs (S, T) or (S, T, width); their entries for padding have no meaning. `OUTPUTS` has the
    names of the outputs.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor,
                token_type_ids: Tensor | None = None) -> tuple[Tensor, ...]:
        """Returns a tuple of the outputs, in the order of their names in `OUTPUTS`."""
        encoder, keep = encoder_of(self.model), attention_mask != 0
        # `embed` treats padding like tokens. This is harmless in BERT and DistilBERT, because the embedding
        # of a token does not depend on other tokens.
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        lengths = torch.full(input_ids.shape[:1], input_ids.shape[1])
        x = encoder.embed(Batch(input_ids, positions, token_type_ids, None, lengths))  # (S, T, D)
        for layer in encoder.layers:
            x = padded_layer(layer, x, keep)
        if isinstance(self.model, MaskedLM):
            return (self.model.mlm.logits(x, encoder.word.weight),)  # (S, T, V)
        if isinstance(self.model, Classifier):
            # `classify` takes a packed batch, so the first token of each row becomes a sequence of one token
            firsts = torch.arange(input_ids.shape[0] + 1, device=input_ids.device)
            return (self.model.classify(x[:, 0], Batch(None, None, None, firsts, None)),)  # (S, K)
        if isinstance(self.model, Span):
            return tuple(self.model.span(x).unbind(-1))  # start and end logits, (S, T) each
        return (x,)


def pad(batch: Batch, pad_id: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pads each of the S sequences of a packed batch at its end to `length` tokens. Returns the token ids,
    the mask (1 for tokens, 0 for padding) and the token types, each (S, length) int64.
    """
    keep = torch.arange(length) < batch.lengths[:, None]  # (S, length)
    ids, segments = torch.full(keep.shape, pad_id), torch.zeros(keep.shape, dtype=torch.int64)
    ids[keep], segments[keep] = batch.ids, batch.segments
    return ids, keep.long(), segments


@torch.no_grad()
def packed_outputs(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """Returns a tuple of the model's outputs for a packed batch, in the order of their names in `OUTPUTS`."""
    out = model(batch)
    return tuple(out.unbind(-1)) if isinstance(model, Span) else (out,)


def on_tokens(model: nn.Module, outputs: tuple, mask: Tensor) -> tuple[Tensor, ...]:
    """Returns padded outputs without the entries for padding. `mask` (S, T) is 1 for tokens and 0 for
    padding. The outputs of a classifier have no entries for padding, so nothing is removed.
    """
    outputs = tuple(torch.as_tensor(out) for out in outputs)
    return outputs if isinstance(model, Classifier) else tuple(out[mask.bool()] for out in outputs)


def samples(model: nn.Module) -> list[tuple[Batch, int]]:
    """Returns a list of pairs, one for each entry of `CHECKED`: a random batch, and the length of its padded
    rows. All lengths are at most the model's number of positions.
    """
    config, rng, most = model.config, np.random.default_rng(0), model.config.max_positions
    made = []
    for lengths, padded in CHECKED:
        ids, segments = ([rng.integers(below, size=min(n, most)).tolist() for n in lengths]
                         for below in (config.vocab_size, max(1, config.segments)))
        made.append((pack(ids, segments), min(padded, most)))
    return made


def input_names(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of the ONNX file's inputs. Each input is an int64 array (S, T), for S sequences that
    are padded to T tokens.
    """
    return ("input_ids", "attention_mask", "token_type_ids")[:3 if model.config.segments else 2]


def packages():
    """Returns the packages onnx and onnxruntime. Raises `UserError` if a package that the export needs is
    missing, or if torch is older than 2.13. (A file that torch 2.6 exports takes only one batch size.
    Versions between 2.6 and 2.13 were not tested.)
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
    """A context manager that hides all warnings, and the log lines of `logger` below the level ERROR."""
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
    """Writes an ONNX file in fp32. The file takes any batch size, and padded rows of any length up to the
    model's number of positions.
    """
    onnx, _ = packages()
    names, head = input_names(model), head_of(model)
    example = tuple(torch.ones(2, min(4, model.config.max_positions), dtype=torch.int64) for _ in names)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=model.config.max_positions)}
    with quiet("torch.onnx"):  # torch's warnings are not needed, because `save_onnx` checks the outputs
        torch.onnx.export(Padded(model).eval(), example, path, input_names=names,
                          output_names=OUTPUTS[head], dynamic_shapes=tuple(axes for _ in names),
                          opset_version=OPSET, dynamo=True, external_data=False, verbose=False)
    proto = onnx.load(path)
    remove_metadata(proto)
    onnx.save(proto, path)


def remove_metadata(proto) -> None:
    """Removes torch's metadata about the source code from an ONNX model, in place. The metadata has file
    paths of the exporting machine.
    """
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]


def quantize_file(source: Path, target: Path, reduce_range: bool) -> None:
    """Writes `target`, a quantised copy of the fp32 file `source`. The copy has embeddings and weight
    matrices in 8 bits, and computes the matrix products of linear layers in 8 bits. Each column of a weight
    matrix (in, out) has its own scale. In each product, all activations of a batch have one scale. So the
    outputs for a sequence depend slightly on the other sequences in its batch.

    Some processors add two products of 8-bit numbers in 16 bits, and this sum may overflow without an error
    (`processor.sums_bytes_in_32_bits`). With `reduce_range`, the weights have 7 bits, which prevents the
    overflow.
    """
    packages()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # hides a warning of ONNX Runtime, which recommends optimising the file first
    with quiet(""):
        quantize_dynamic(source, target, per_channel=True, reduce_range=reduce_range,
                         weight_type=QuantType.QInt8)


def open_file(path: Path):
    """Opens an ONNX file in ONNX Runtime on the CPU, and returns the session."""
    _, onnxruntime = packages()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_file(session, model: nn.Module, batch: Batch, length: int) -> tuple[Tensor, ...]:
    """Pads the sequences of a packed batch to `length` tokens, and runs the ONNX file of `model` on them.
    Returns the outputs without the entries for padding. `session` is the result of `open_file`.
    """
    inputs = pad(batch, model.config.pad_id, length)
    feed = {name: tensor.numpy() for name, tensor in zip(input_names(model), inputs)}
    return on_tokens(model, session.run(OUTPUTS[head_of(model)], feed), inputs[1])


def deviation(model: nn.Module, path: Path) -> float:
    """Returns the largest absolute difference between an output of the ONNX file and the same output of the
    model, over the batches of `samples`. If the model's output has absolute values above 1, the difference is
    divided by the largest of these values. Returns infinity if a shape differs or a difference is not finite.
    """
    session, worst = open_file(path), 0.0
    for batch, length in samples(model):
        for expected, actual in zip(packed_outputs(model, batch), run_file(session, model, batch, length)):
            if expected.shape != actual.shape:
                return math.inf
            apart = float((expected - actual).abs().max() / expected.abs().max().clamp(min=1))
            worst = max(worst, apart if math.isfinite(apart) else math.inf)
    return worst


def save_onnx(model: nn.Module, folder: str | Path, tokenizer: Tokenizer | None = None,
              bits: int | None = None, judge: Callable[[Path], None] | None = None) -> float:
    """Writes the ONNX file, Hugging Face's config.json and, if `tokenizer` is given, the tokenizer's files.
    Returns the `deviation` of the ONNX file from the model.

    If `bits` is None, the ONNX file is model.onnx in fp32. If `bits` is 8 or 7, the ONNX file is
    model_quantized.onnx, with weights in 8 or 7 bits (see `quantize_file`). `judge` gets the path of the
    quantised file, and can refuse the file with a `UserError`.

    A quantised file is made from an fp32 file. In both cases, the fp32 file is checked in ONNX Runtime
    (`TOLERANCE`). Raises `UserError` and writes nothing if the model cannot be exported, if the check fails,
    or if `judge` refuses the file.
    """
    model = getattr(model, "_orig_mod", model).eval()  # the model inside the wrapper of torch.compile
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
