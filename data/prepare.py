"""Turns text files into a prepared corpus, which is a folder with the tokens that train.py reads.

    python data/prepare.py python-docs --vocab-size 8000 --out data/python-docs
    python data/prepare.py my_text/ --tokenizer weights/bert-base-uncased --out data/my-corpus
    python data/prepare.py wiki.train.tokens notes.jsonl.gz --vocab-size 20000 --cased --out data/mixed
"""

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # makes minibert importable from any folder

from minibert.common.disk import place_for  # noqa: E402
from minibert.common.errors import UserError, run_script  # noqa: E402
from minibert.data.prepare import prepare, training_lines  # noqa: E402
from minibert.data.python_docs import prepare_python_docs, python_docs, split_docs  # noqa: E402
from minibert.data.tokenizer import load_tokenizer, train_tokenizer  # noqa: E402


def main() -> None:
    """Reads the command line, prepares the corpus, and prints its size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILES",
                        help="text files, or folders with text files. A .txt file has a blank line between "
                        "documents. A .jsonl file has the text of a document in the field \"text\". Files "
                        "of WikiText (.tokens, .raw) are also read. All files may be compressed (.gz, .xz). "
                        "The word python-docs stands for the documentation of Python's standard library")
    parser.add_argument("--out", required=True, metavar="DIR",
                        help="folder of the prepared corpus; it must be new or empty")
    vocabulary = parser.add_mutually_exclusive_group(required=True)
    vocabulary.add_argument("--tokenizer", metavar="DIR|NAME",
                            help="folder with tokenizer.json or vocab.txt, or name of a model on the hub")
    vocabulary.add_argument("--vocab-size", type=int, metavar="N",
                            help="learn a new vocabulary of N pieces from the text files")
    parser.add_argument("--cased", action="store_true",
                        help="keep upper case and accents in the new vocabulary")
    parser.add_argument("--wikitext", choices=("auto", "yes", "no"), default="auto",
                        help="yes: the files are WikiText, which is changed back to plain text, for example "
                        "\"@-@\" to \"-\". auto: the content of each file shows whether the file is WikiText "
                        "(default: auto)")
    parser.add_argument("--held-out", type=float, metavar="SHARE",
                        help="share of the documents that are used for the evaluation only (default: 0.01). "
                        "Not possible with python-docs, whose held-out modules are fixed")
    args = parser.parse_args()

    docs = args.files == ["python-docs"]
    if docs and args.held_out is not None:
        raise UserError("--held-out is not possible with python-docs, which has its own split")
    if args.cased and args.vocab_size is None:
        raise UserError("--cased needs --vocab-size: an existing tokenizer already has this setting")
    held_out = 0.01 if args.held_out is None else args.held_out
    # SIGTERM ends the script by an exception, so that `new_folder` removes the unfinished folder
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    place_for(Path(args.out))  # a wrong --out is reported before the long training of a vocabulary
    if args.vocab_size is None:
        tokenizer = load_tokenizer(args.tokenizer)
    else:
        lines = ((line for part, lines in split_docs(python_docs()) if part == "train" for line in lines)
                 if docs else training_lines(args.files, args.wikitext, held_out))
        tokenizer = train_tokenizer(lines, args.vocab_size, lowercase=not args.cased)
        if tokenizer.vocab_size < args.vocab_size:
            print(f"the new vocabulary has only {tokenizer.vocab_size:,} pieces, because the text is small")
    if docs:
        prepare_python_docs(tokenizer, args.out)
    else:
        prepare(args.files, tokenizer, args.out, args.wikitext, held_out)


if __name__ == "__main__":
    run_script(main)
