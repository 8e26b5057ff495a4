"""Downloads the data sets that finetune.py and data/prepare.py read. --list shows their sources.

    python data/download.py --list
    python data/download.py cola mrpc squad --out data
    python data/download.py glue imdb wikitext-103 --out data
"""

import argparse
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # makes minibert importable from any folder

from minibert.common.errors import UserError, run_script  # noqa: E402
from minibert.tasks.download import DATA_SETS, download, listing  # noqa: E402


def main() -> None:
    """Reads the command line, and lists or downloads data sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"data sets to download: glue (all of GLUE), {', '.join(DATA_SETS)}")
    parser.add_argument("--out", metavar="DIR", help="folder for the data sets")
    parser.add_argument("--list", action="store_true",
                        help="print all data sets with sizes, sources, and terms of use (if they are known)")
    args = parser.parse_args()

    if args.list:
        print(listing())
        return
    if not args.names or args.out is None:
        raise UserError("give names of data sets, and an output folder as --out DIR; --list prints all names")
    # SIGTERM ends the script by an exception, so that `download` removes unfinished folders
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    socket.setdefaulttimeout(30)  # seconds without a byte, after which a download fails
    download(args.names, args.out)


if __name__ == "__main__":
    run_script(main)
