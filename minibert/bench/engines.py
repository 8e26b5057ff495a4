"""The engines that `bench.py inference` compares. An engine is a library with a mode, for example
"minibert int8" or "transformers bf16".

For each engine, a function opens the files of a model and returns a function `run(ids, segments)`. `run` gets
the token ids and the token types (`segments`) of S sentences, and returns the logits (S, K) for K classes.
minibert packs sentences without padding. All other libraries compute padded batches of at most `PADDED`
sentences.
"""

import contextlib
import importlib.util
import json
import logging
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import minibert
from minibert.common.errors import UserError
from minibert.common.processor import sums_bytes_in_32_bits
from minibert.common.runtime import native_bf16
from minibert.data.examples import make_examples
from minibert.hub.onnx_export import pad, quantize_file, write_onnx
from minibert.inference.fast_encoder import MODES, fast, kernels_of
from minibert.inference.predict import outputs, where_it_is
from minibert.model.batch import pack

PADDED = 8

Run = Callable[[list[list[int]], list[list[int]]], np.ndarray]


def write_files(model: nn.Module, tokenizer, folder: Path, engines: list[str],
                calibration: tuple[list[list[int]], list[list[int]]]) -> None:
    """Writes to `folder` the files that `engines` need. `calibration` is a pair of arguments for
    `write_openvino_int8`: the token ids and the token types of sentences.
    """
    minibert.save(model, folder / "model", tokenizer)
    kinds = {engine.split()[0] for engine in engines}
    if kinds & {"onnxruntime", "openvino"}:
        write_onnx(model, folder / "model.onnx")
    if "onnxruntime int8" in engines:
        quantize_file(folder / "model.onnx", folder / "int8.onnx", not sums_bytes_in_32_bits())
    if "openvino int8" in engines:
        write_openvino_int8(folder, *calibration)
    if "ctranslate2" in kinds:
        from ctranslate2.converters import TransformersConverter
        _quiet_transformers()
        # CTranslate2 needs the setting position_embedding_type. It is added to config.json, because
        # transformers 5 has no default for it.
        config = folder / "model" / "config.json"
        raw = json.loads(config.read_text()) | {"position_embedding_type": "absolute"}
        config.write_text(json.dumps(raw))
        TransformersConverter(str(folder / "model")).convert(str(folder / "ctranslate2"))


def write_openvino_int8(folder: Path, ids: list[list[int]], segments: list[list[int]]) -> None:
    """Quantises model.onnx to int8 with the library NNCF, and writes int8.xml for OpenVINO. The settings are
    from NNCF's documentation for Transformer models. The scales of the activations are measured on
    sentences with the token ids `ids` and the token types `segments`.
    """
    import nncf
    import openvino
    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = openvino.Core().read_model(folder / "model.onnx")
    names = [one.any_name for one in model.inputs]
    sentences = [dict(zip(names, (x.numpy() for x in padded([one], [types]))))
                 for one, types in zip(ids, segments)]
    with contextlib.redirect_stdout(sys.stderr):  # NNCF prints progress bars to stdout, which is for results
        quantised = nncf.quantize(model, nncf.Dataset(sentences), model_type=nncf.ModelType.TRANSFORMER,
                                  subset_size=len(sentences))
    openvino.save_model(quantised, folder / "int8.xml")


def in_padded_batches(run: Callable, ids: list[list[int]], segments: list[list[int]]) -> np.ndarray:
    """Calls `run` with batches of at most `PADDED` sentences. A batch has sentences of similar length, so it
    needs little padding. Returns the logits in the order of `ids`.
    """
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    made = [None] * len(ids)
    for begin in range(0, len(order), PADDED):
        batch = order[begin:begin + PADDED]
        for i, row in zip(batch, run([ids[i] for i in batch], [segments[i] for i in batch])):
            made[i] = row
    return np.stack(made)


def padded(ids: list[list[int]], segments: list[list[int]]) -> tuple[torch.Tensor, ...]:
    """Pads S sentences to T tokens, the length of the longest sentence. Returns a tuple (token ids, attention
    mask, token types); each tensor is (S, T).
    """
    return pad(pack(ids, segments), 0, max(map(len, ids)))


def minibert_engine(mode: str | None, folder: Path, device: torch.device) -> Run:
    """Returns a function `run` that computes the outputs with minibert. `mode` is the mode of `fast`. If
    `mode` is None, the model computes in fp32, without `fast`.
    """
    model = minibert.load(folder / "model").to(device)
    if mode:
        model = fast(model, mode)
    runtime = where_it_is(model)
    return lambda ids, segments: outputs(model, make_examples(ids, segments, np.zeros(len(ids))), runtime)


def transformers_engine(how: str, folder: Path, device: torch.device) -> Run:
    """Returns a function `run` that computes the outputs with `transformers`. `how` is "fp32", "bf16",
    "compiled" (torch.compile, in fp32) or "bf16 compiled".
    """
    transformers = _quiet_transformers()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "model", attn_implementation="sdpa",
        dtype=torch.bfloat16 if "bf16" in how else torch.float32).to(device).eval()
    names = ("input_ids", "attention_mask", "token_type_ids")[:3 if model.config.model_type == "bert" else 2]
    if "compiled" in how:
        model.compile(dynamic=True)

    @torch.inference_mode()
    def batch(ids, segments):
        inputs = {name: x.to(device) for name, x in zip(names, padded(ids, segments))}
        return model(**inputs).logits.float().cpu().numpy()
    return partial(in_padded_batches, batch)


def _quiet_transformers():
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def onnxruntime_engine(file: str, folder: Path, device: torch.device) -> Run:
    """Returns a function `run` that computes the outputs with ONNX Runtime on the CPU. `file` is an
    ONNX file in `folder`.
    """
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(folder / file, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def batch(ids, segments):
        return session.run(None, {name: x.numpy() for name, x in zip(names, padded(ids, segments))})[0]
    return partial(in_padded_batches, batch)


def openvino_engine(file: str, folder: Path, device: torch.device) -> Run:
    """Returns a function `run` that computes the outputs with OpenVINO on the CPU. `file` is
    model.onnx or int8.xml in `folder`. Operations that are not int8 run in fp32.
    """
    import openvino
    compiled = openvino.Core().compile_model(str(folder / file), "CPU", {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32"})
    inputs = len(compiled.inputs)
    return partial(in_padded_batches, lambda ids, segments: compiled(
        [x.numpy() for x in padded(ids, segments)[:inputs]])[0])


def ctranslate2_engine(precision: str, folder: Path, device: torch.device) -> Run:
    """Returns a function `run`. `run` computes the hidden states with CTranslate2 on the CPU, and then the
    logits with minibert's classification head.
    """
    import ctranslate2
    encoder = ctranslate2.Encoder(str(folder / "ctranslate2"), device="cpu", compute_type=precision,
                                  inter_threads=1, intra_threads=torch.get_num_threads())
    model = minibert.load(folder / "model")

    @torch.inference_mode()
    def batch(ids, segments):
        types = {"token_type_ids": segments} if model.config.segments else {}
        last = np.array(encoder.forward_batch(ids, **types).last_hidden_state)
        return model.classify(torch.from_numpy(last[:, 0]), pack([[0]] * len(ids))).numpy()
    return partial(in_padded_batches, batch)


ENGINES: dict[str, Callable[[Path, torch.device], Run]] = {
    "minibert": partial(minibert_engine, None),
    **{f"minibert {mode}": partial(minibert_engine, mode) for mode in MODES},
    "transformers fp32": partial(transformers_engine, "fp32"),
    "transformers bf16": partial(transformers_engine, "bf16"),
    "transformers compiled": partial(transformers_engine, "compiled"),
    "transformers bf16 compiled": partial(transformers_engine, "bf16 compiled"),
    "onnxruntime fp32": partial(onnxruntime_engine, "model.onnx"),
    "onnxruntime int8": partial(onnxruntime_engine, "int8.onnx"),
    "openvino fp32": partial(openvino_engine, "model.onnx"),
    "openvino int8": partial(openvino_engine, "int8.xml"),
    "ctranslate2 fp32": partial(ctranslate2_engine, "float32"),
    "ctranslate2 int8": partial(ctranslate2_engine, "int8"),
}


# for each library, the packages that its engines need to run and to write their files; the engine
# "openvino int8" has its own entry
PACKAGES = {"minibert": [], "transformers": ["transformers"], "ctranslate2": ["ctranslate2", "transformers"],
            "onnxruntime": ["onnxruntime", "onnx", "onnxscript"],
            "openvino": ["openvino", "onnx", "onnxscript"],
            "openvino int8": ["openvino", "nncf", "onnx", "onnxscript"]}


def why_not(engine: str, device: torch.device) -> str | None:
    """Returns the reason why an engine cannot run on a device, or None if it can run."""
    package, _, how = engine.partition(" ")
    for needed in PACKAGES.get(engine, PACKAGES[package]):
        if importlib.util.find_spec(needed) is None:
            return f"{needed} is not installed"
    if package == "minibert":
        try:
            if how:
                kernels_of(how, device)
        except UserError as error:
            return str(error)
        return None
    if package != "transformers" and device.type != "cpu":
        return "this engine is measured on CPUs only"
    if "bf16" in how and not native_bf16(device):
        return "this device has no native bf16"
    if "compiled" in how and device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "torch.compile needs a C++ compiler on a CPU"
    return None
