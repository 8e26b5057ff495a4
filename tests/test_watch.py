"""tests/watch.py sees a leak of memory or files, and none where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import test_train

folder = test_train.folder  # a fixture: corpus and teacher of train.py
WATCH = Path(__file__).with_name("watch.py")
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def watched(*command, every=0.02):
    done = subprocess.run([sys.executable, WATCH, "--every", str(every), *map(str, command)],
                          capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("leak, word", [("0", None), ("held.append(bytearray(1 << 20))", "memory"),
                                        ("held.append(open('/dev/null'))", "files")])
def test_leaks_are_seen(leak, word):
    code = f"import time\nheld = []\nfor _ in range(60):\n    {leak}\n    time.sleep(0.01)"
    returned, found = watched("--", sys.executable, "-c", code)
    assert returned == (word is not None)
    assert [word in said for said in found["drift"]] == ([True] if word else [])


@pytest.mark.slow
def test_a_training_run_does_not_grow(folder, tmp_path):  # noqa: F811
    """A few thousand steps with evaluations and checkpoints; an hour is the same with more --steps."""
    out = tmp_path / "run"
    argv = test_train.options(folder, out, steps=1500, **{"checkpoint-every": 50, "eval-every": 100})
    returned, found = watched("--metrics", out / "metrics.jsonl", "--", sys.executable,
                              test_train.ROOT / "train.py", *argv, every=0.2)
    print(found)
    assert found["exit"] == 0
    assert not [said for said in found["drift"] if "speed" not in said], found  # others use this machine, too
