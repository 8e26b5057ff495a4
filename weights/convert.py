"""Converts a model to safetensors, to another precision, to another head, to ONNX, or to a smaller model.

    python weights/convert.py weights/teacher /tmp/teacher-fp16 --dtype fp16
    python weights/convert.py bert-base-uncased weights/bert-base-uncased
    python weights/convert.py TinyBERT_General_4L_312D weights/tinybert-4 --head encoder
    python weights/convert.py runs/mine/model runs/mine/onnx --to onnx
    python weights/convert.py runs/mrpc/model runs/int8 --to onnx --int8 --task mrpc --data data/glue_data
    python weights/convert.py runs/mrpc/model runs/mrpc-cut --layers 0,2,5
    python weights/convert.py bert-base-uncased weights/start --layers 0,4,8 --tokenizer data/mine/tokenizer

An old pytorch_model.bin is read with `weights_only=True`, so no code in the file is run. With `--to hf`,
TARGET also gets parts of SOURCE for other programs: settings in config.json, files of sentence-transformers,
and unused tensors, for example those of a pooler. With `--positions` or `--tokenizer`, these settings and
files are left out.

`--to onnx` needs the `onnx` extra. It writes TARGET/model.onnx in fp32, or TARGET/model_quantized.onnx with
`--int8`. Nothing is saved if the outputs of the fp32 file in ONNX Runtime differ too much from the model's
outputs.

The last two commands above make a smaller model, which should be trained afterwards.
"""

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # makes minibert importable from any folder

import torch  # noqa: E402

from minibert.common.disk import place_for  # noqa: E402
from minibert.common.errors import UserError, run_script  # noqa: E402
from minibert.common.hub_download import local_folder  # noqa: E402
from minibert.common.options import numbers  # noqa: E402
from minibert.common.processor import sums_bytes_in_32_bits  # noqa: E402
from minibert.data.tokenizer import load_tokenizer  # noqa: E402
from minibert.hub.load_save import MODELS, Beside, head_of, load, save  # noqa: E402
from minibert.hub.prune import change_vocabulary, keep_layers, keep_positions, keep_units  # noqa: E402

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main() -> None:
    """Reads the command line, loads SOURCE, changes the model, and saves it as TARGET."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="a folder, or a model's name on the hub")
    parser.add_argument("target", metavar="TARGET", type=Path,
                        help="a folder that does not exist yet, or is empty")
    parser.add_argument("--to", choices=("hf", "onnx"), default="hf",
                        help="hf: a folder for minibert and transformers; onnx: an ONNX file (default: "
                        "%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32",
                        help="precision of the stored weights (default: %(default)s)")
    parser.add_argument("--head", choices=MODELS,
                        help="head of the saved model (default: the head of SOURCE)")
    int8 = parser.add_argument_group("with --to onnx")
    int8.add_argument("--int8", action="store_true",
                      help="compute matrix products in int8")
    int8.add_argument("--reduce-range", action="store_true",
                      help="store the weights in 7 bits, which x86 processors without VNNI need (default: "
                      "7 bits if this processor needs them, otherwise 8 bits)")
    int8.add_argument("--task", metavar="TASK",
                      help="compare the scores of the model and the int8 file on the dev set of a task. "
                      "Tasks have the same names as for finetune.py --task")
    int8.add_argument("--data", metavar="FOLDER",
                      help="folder with the task's official files, or its parent folder")
    int8.add_argument("--max-length", metavar="TOKENS", type=int,
                      help="with --task: maximum length of an example in tokens, as in finetune.py; longer "
                      "examples are cut (default: depends on the task, mostly 128)")
    int8.add_argument("--most-loss", metavar="POINTS", type=float, default=1.0,
                      help="with --task: how much lower the int8 file may score, in points of the task's "
                      "first metric. If it scores even lower, nothing is saved (default: %(default)s)")
    carving = parser.add_argument_group("to make a smaller model from SOURCE")
    carving.add_argument("--layers", metavar="0,2,5", help="numbers (from 0) of the layers to keep")
    carving.add_argument("--feed-forward", metavar="UNITS", type=int,
                         help="keep only this number of feed-forward units of each layer")
    carving.add_argument("--positions", metavar="P", type=int,
                         help="keep only the first P position embeddings")
    carving.add_argument("--tokenizer", metavar="DIR",
                         help="folder of another tokenizer, whose vocabulary the new model gets")
    args = parser.parse_args()
    place_for(args.target)
    if args.int8 and args.to != "onnx":
        raise UserError("--int8 needs --to onnx")
    for name, needed in (("reduce_range", "int8"), ("task", "int8"), ("data", "task"),
                         ("max_length", "task")):
        given = getattr(args, name)
        if given is not None and given is not False and not getattr(args, needed):
            raise UserError(f"--{name.replace('_', '-')} has no effect without --{needed}")
    if args.to == "onnx":
        from minibert.hub.onnx_export import packages, save_onnx
        packages()  # reports missing packages before the model is loaded
        if args.dtype != "fp32":
            raise UserError(f"--dtype {args.dtype}: an ONNX file is written in fp32; leave out --dtype")

    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    source = local_folder(args.source)
    has_tokenizer = any((source / name).exists() for name in ("tokenizer.json", "vocab.txt"))
    tokenizer = load_tokenizer(source) if has_tokenizer else None
    model = load(source, args.head, legacy_bin=True)
    if model.sentences is not None and model.sentences.refused:
        print(f"note: minibert.embed refuses this model: {model.sentences.refused}", file=sys.stderr)
    beside = model.beside
    model, tokenizer = carve(model, tokenizer, args)
    if args.positions is not None or args.tokenizer is not None:
        # The old files and settings may contain token ids or a number of positions that are wrong for the new
        # model.
        beside = Beside(tensors=beside.tensors)
    model.beside = beside
    note = "" if tokenizer else "; there was no tokenizer to copy"
    if args.to == "onnx":
        bits = judge = None
        if args.int8:
            bits = 8 if sums_bytes_in_32_bits() and not args.reduce_range else 7
        if args.task:
            from minibert.tasks.onnx_scores import judge_of
            if tokenizer is None:
                raise UserError(f"{source} has no tokenizer, so it cannot be evaluated on --task")
            judge = judge_of(model, tokenizer, str(source), args.task, args.data, args.most_loss,
                             args.max_length)
        apart = save_onnx(model, args.target, tokenizer, bits, judge)
        note += f"; outputs in ONNX Runtime differ by at most {apart:.0e} from the model's" + (
            f", weights of {bits} bits" if bits else "")
    else:
        save(model, args.target, tokenizer, DTYPES[args.dtype])
    size = next(path.stat().st_size for path in args.target.glob("model*"))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.target}: {model.config.architecture}, {head_of(model)}, {parameters:,} parameters, "
          f"{size:,} bytes{note}")


def carve(model, tokenizer, args):
    """Makes the model smaller, as the command-line options say. Returns the pair (model, tokenizer). Without
    such options, returns `model` and `tokenizer` unchanged.
    """
    if args.layers is not None:
        model = keep_layers(model, numbers("--layers", args.layers))
    if args.feed_forward is not None:
        model = keep_units(model, args.feed_forward)
    if args.positions is not None:
        model = keep_positions(model, args.positions)
    if args.tokenizer is not None:
        if tokenizer is None:
            raise UserError(f"{args.source} has no tokenizer, so the tokens of its word embeddings are "
                            "not known")
        old, tokenizer = tokenizer, load_tokenizer(args.tokenizer)
        model = change_vocabulary(model, old, tokenizer)
    return model, tokenizer


if __name__ == "__main__":
    run_script(main)
