"""What long work shows as it goes."""

import pytest

from minibert.common import progress
from minibert.training import summary


@pytest.fixture
def clock(monkeypatch):
    """Moves the time on by so many seconds; nothing else does."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.delenv("RANK", raising=False)

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def is_terminal(monkeypatch, yes: bool) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: yes)


def counted(clock, capsys, seconds: float) -> str:
    """What four parts of 25 of 100 tokens show, `seconds` each."""
    tell = progress.counting("judging", 100)
    for _ in range(4):
        clock(seconds)
        tell(25)
    return capsys.readouterr().err


def test_long_work_is_counted_every_ten_seconds(clock, capsys, monkeypatch):
    is_terminal(monkeypatch, False)
    assert counted(clock, capsys, 12).splitlines() == [
        "judging: 25%  2 tok/s  0:00:36 left", "judging: 50%  2 tok/s  0:00:24 left",
        "judging: 75%  2 tok/s  0:00:12 left"]
    assert counted(clock, capsys, 5).splitlines() == ["judging: 50%  5 tok/s  0:00:10 left"]
    monkeypatch.setenv("RANK", "1")
    assert counted(clock, capsys, 12) == ""


@pytest.mark.parametrize("terminal, seconds", [(False, 2), (True, 0.1)])
def test_short_work_shows_nothing(clock, capsys, monkeypatch, terminal, seconds):
    is_terminal(monkeypatch, terminal)
    assert counted(clock, capsys, seconds) == ""


def test_a_terminal_has_one_line_which_is_cleared_at_the_end(clock, capsys, monkeypatch):
    is_terminal(monkeypatch, True)
    shown = counted(clock, capsys, 1)
    assert shown.startswith("\r\033[Kjudging: 25%  25 tok/s  0:00:03 left\r\033[K") and "\n" not in shown
    assert shown.endswith("0:00:01 left\r\033[K")


def row(**terms: float) -> dict:
    return {"loss": sum(terms.values()), "lr": 1e-4, "grad_norm": 2.0, "tokens_per_second": 1500.0, **terms}


def test_a_resumed_training_shows_its_first_step_and_its_last(clock, capsys, monkeypatch):
    """The time left is at the rate of this session: steps 7 to 10 of ten."""
    is_terminal(monkeypatch, False)
    show = summary.Progress(10, 6)
    for step in range(7, 11):
        clock(4)
        show(step, row(kl=1.0, mlm=2.5))
    assert capsys.readouterr().err.splitlines() == [
        "step 7/10  loss 3.500 (kl 1.000 mlm 2.500)  lr 1.0e-04  |g| 2.00  1,500 tok/s  0:00:12 left",
        "step 10/10  loss 3.500 (kl 1.000 mlm 2.500)  lr 1.0e-04  |g| 2.00  1,500 tok/s  0:00:00 left"]


def test_the_last_step_stays_on_a_terminal(clock, capsys, monkeypatch):
    is_terminal(monkeypatch, True)
    show = summary.Progress(2, 0)
    for step in (1, 2):
        clock(1)
        show(step, row(mlm=2.5))
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and shown.endswith("0:00:00 left\n") and shown.count("\r\033[K") == 2


def test_a_line_that_showed_nothing_ends_with_nothing(clock, capsys, monkeypatch):
    is_terminal(monkeypatch, True)
    line = progress.Line()
    line.end()
    line.clear()
    assert capsys.readouterr().err == ""
