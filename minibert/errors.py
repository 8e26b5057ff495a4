"""The one exception for what a user can cause and mend;
the scripts turn it into one sentence and exit code 2.
"""

import os
import sys


class UserError(Exception):
    """One clear sentence that names the file, line, option or tensor at fault and what to do about it."""


def run_script(main) -> None:
    """Calls `main()`; a `UserError` becomes one line on stderr and exit code 2, without a traceback."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # what reads the output, like `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
