"""Converts a model to safetensors, to another precision, to another head, to ONNX, or to a smaller model.

    python weights/convert.py weights/teacher /tmp/teacher-fp16 --dtype fp16
    python weights/convert.py bert-base-uncased weights/bert-base-uncased
    python weights/convert.py TinyBERT_General_4L_312D weights/tinybert-4 --head encoder
    python weights/convert.py runs/mine/model runs/mine/onnx --to onnx
    python weights/convert.py runs/mrpc/model runs/mrpc/int8 --to onnx --int8 --task mrpc --data data
    python weights/convert.py runs/mrpc/model runs/mrpc-cut --layers 0,2,5
    python weights/convert.py bert-base-uncased weights/start --layers 0,4,8 --tokenizer data/mine/tokenizer

SOURCE is a folder or a name on the Hugging Face hub. An old pytorch_model.bin is read with
`weights_only=True`, so no code in the file is run. TARGET also gets the parts of SOURCE that only other
programs read: settings in its config.json, a pooler that the model does not use, and the files of
sentence-transformers.

`--to onnx` writes TARGET/model.onnx in fp32. The file takes padded batches of any size. ONNX Runtime checks
the file before it gets its name (minibert/hub/onnx_export.py). The export needs the `onnx` extra. With
`--int8`, the file is TARGET/model_quantized.onnx. With `--task`, the int8 file is evaluated on the task's dev
set. If it loses too many points, nothing is saved.

The last two commands above cut a smaller model with the same head out of a large one (minibert/hub/prune.py).
The smaller model may have another vocabulary. Such a model is a good start for a training, because it needs
much less training than random weights.
"""

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds minibert from any folder

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
    """Reads the command line, loads SOURCE, saves TARGET."""
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
                      help="compute matrix products in int8; each output has its own scale for the weights, "
                      "and each batch has its own scale for the activations")
    int8.add_argument("--reduce-range", action="store_true",
                      help="store the weights in 7 bits, for processors without VNNI (always done if this "
                      "processor has no VNNI)")
    int8.add_argument("--task", metavar="TASK",
                      help="compare the scores of the model and the int8 file on the dev set of this task; "
                      "names are those of finetune.py --task")
    int8.add_argument("--data", metavar="FOLDER", help="folder of the task's official files, or its parent")
    int8.add_argument("--most-loss", metavar="POINTS", type=float, default=1.0,
                      help="save nothing if the int8 file loses more points of the task's first metric "
                      "(default: %(default)s)")
    carving = parser.add_argument_group("to cut a smaller model out of SOURCE")
    carving.add_argument("--layers", metavar="0,2,5", help="keep only these layers, numbered from 0")
    carving.add_argument("--feed-forward", metavar="UNITS", type=int,
                         help="keep only this number of feed-forward units of each layer")
    carving.add_argument("--positions", metavar="P", type=int, help="keep only the first P positions")
    carving.add_argument("--tokenizer", metavar="DIR",
                         help="folder of another tokenizer, whose vocabulary the new model gets; the rows of "
                         "pieces that both vocabularies have are kept")
    args = parser.parse_args()
    place_for(args.target)
    if args.int8 and args.to != "onnx":
        raise UserError("--int8 needs --to onnx")
    for name in ("reduce_range", "task", "data"):
        if getattr(args, name) and not args.int8:
            raise UserError(f"--{name.replace('_', '-')} has no effect without --int8")
    if args.to == "onnx":
        from minibert.hub.onnx_export import packages, save_onnx
        packages()  # missing packages are reported before the model is loaded
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
        # the old model's files and settings may contain numbers of positions or ids of pieces, which are
        # wrong now; its tensors of other heads still fit
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
            judge = judge_of(model, tokenizer, str(source), args.task, args.data, args.most_loss)
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
    """Cuts a smaller model out of `model` as the options say. Returns the smaller model and its tokenizer."""
    if args.layers is not None:
        model = keep_layers(model, numbers("--layers", args.layers))
    if args.feed_forward is not None:
        model = keep_units(model, args.feed_forward)
    if args.positions is not None:
        model = keep_positions(model, args.positions)
    if args.tokenizer is not None:
        if tokenizer is None:
            raise UserError(f"{args.source} has no tokenizer, so the pieces of its rows are not known")
        old, tokenizer = tokenizer, load_tokenizer(args.tokenizer)
        model = change_vocabulary(model, old, tokenizer)
    return model, tokenizer


if __name__ == "__main__":
    run_script(main)
