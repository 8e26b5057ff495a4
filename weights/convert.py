"""Converts a model between Hugging Face's layout and ours, and old pickled weights to safetensors.

    python weights/convert.py weights/teacher /tmp/teacher-fp16 --dtype fp16
    python weights/convert.py bert-base-uncased weights/bert-base-uncased
    python weights/convert.py TinyBERT_General_4L_312D weights/tinybert-4 --to minibert --head encoder

SOURCE is a folder or a name on the Hugging Face hub. A legacy pytorch_model.bin is read with `weights_only=True`:
tensors load, code in the file does not run.
"""

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to run from anywhere, installed or not

import torch  # noqa: E402

from minibert.errors import UserError, run_script  # noqa: E402
from minibert.hub import MODELS, head_of, load, load_tokenizer, local_folder, save  # noqa: E402

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main() -> None:
    """Reads the command line, loads SOURCE, saves TARGET."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="a folder, or a model's name on the hub")
    parser.add_argument("target", metavar="TARGET", type=Path,
                        help="a folder that does not exist yet, or is empty")
    parser.add_argument("--to", choices=("hf", "minibert"), default="hf",
                        help="whose names and config: Hugging Face's or ours (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32",
                        help="stored precision (default: %(default)s)")
    parser.add_argument("--head", choices=MODELS, help="the head to keep (default: the one that SOURCE has)")
    args = parser.parse_args()
    if args.target.exists() and (not args.target.is_dir() or any(args.target.iterdir())):
        raise UserError(f"{args.target} exists and is not an empty folder; choose another TARGET")

    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    source = local_folder(args.source)
    model = load(source, args.head, legacy_bin=True)
    has_tokenizer = any((source / name).exists() for name in ("tokenizer.json", "vocab.txt"))
    save(model, args.target, load_tokenizer(source) if has_tokenizer else None, args.to, DTYPES[args.dtype])
    size = (args.target / "model.safetensors").stat().st_size
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.target}: {model.config.architecture}, {head_of(model)}, {parameters:,} parameters, "
          f"{size:,} bytes{'' if has_tokenizer else '; there was no tokenizer to copy'}")


if __name__ == "__main__":
    run_script(main)
