"""Errors that a user can correct, and the exit codes of the scripts."""

import os
import sys


class UserError(Exception):
    """An error that the user can correct. Its message is one sentence that names the wrong file, option or
    other input.
    """


def sentence(error: UserError | str) -> str:
    """Returns the message of an error on one line of at most 2,000 characters. Characters that are not
    printable are escaped.
    """
    text = " ".join(str(error).split())
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:2001])
    return text if len(text) <= 2000 else text[:1990] + " and so on"


def run_script(main) -> None:
    """Calls `main()`. A `UserError` or an OSError becomes one line on stderr and exit code 2. Ctrl-C gives
    exit code 130. If the program that reads the script's output has ended, the exit code is 1. A character
    that the terminal's encoding does not have is printed as a code like \\xe9.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # stdout becomes os.devnull, so that Python's flush of stdout at the exit does not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename} cannot be used: " if error.filename else ""
        print(f"error: {sentence(where + (error.strerror or str(error)))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
