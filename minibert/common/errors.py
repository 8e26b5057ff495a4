"""The one exception for what a user can cause and mend;
the scripts turn it into one sentence and exit code 2.
"""

import os
import sys


class UserError(Exception):
    """One clear sentence that names the file, line, option or tensor at fault and what to do about it."""


def sentence(error: UserError | str) -> str:
    """The message on one line: what a hostile file put into it can neither break it, nor steer a terminal.

    At most 2,000 characters, since it may name a file's every tensor.
    """
    text = " ".join(str(error).split())
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:2001])
    return text if len(text) <= 2000 else text[:1990] + " and so on"


def run_script(main) -> None:
    """Calls `main()`; a `UserError`, or what the system refuses, becomes one line on stderr and exit code 2,
    without a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal of cp1252 prints what it has no sign for as \u....
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # what reads the output, like `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a folder that may not be read, a name that is too long, a full disk
        where = f"{error.filename} cannot be used: " if error.filename else ""
        print(f"error: {sentence(where + (error.strerror or str(error)))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
