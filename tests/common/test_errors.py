"""What scripts print, whatever the terminal can print."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("encoding, shown", [("latin-1", b"caf\xe9 \\u4e2d"), ("ascii", b"caf\\xe9 \\u4e2d"),
                                             ("cp1252", b"caf\xe9 \\u4e2d"), ("utf-8", "café 中".encode())])
def test_a_terminal_that_lacks_a_character_loses_nothing(encoding, shown):
    code = ("from minibert.common.errors import UserError, run_script\n"
            "def main():\n    print('caf\\xe9 \\u4e2d')\n"
            "    raise UserError('caf\\xe9 \\u4e2d is not there')\n"
            "run_script(main)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                          env=os.environ | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 2 and done.stdout.strip() == shown
    assert done.stderr.strip() == b"error: " + shown + b" is not there"
