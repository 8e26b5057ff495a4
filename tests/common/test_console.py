"""What long work shows as it goes."""

import pytest

from minibert.common import console
from minibert.training.run_folder import in_words


@pytest.fixture
def clock(monkeypatch):
    """Moves the time on by so many seconds; nothing else does."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.delenv("RANK", raising=False)

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def is_terminal(monkeypatch, yes: bool) -> None:
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: yes)


def shown(clock, capsys, seconds: float) -> str:
    """What four parts of 25 of 100 tokens show, `seconds` each."""
    progress = console.Progress("judging", 100, "tokens")
    for _ in range(4):
        clock(seconds)
        progress(25)
    return capsys.readouterr().err


def test_long_work_is_shown_every_ten_seconds(clock, capsys, monkeypatch):
    is_terminal(monkeypatch, False)
    assert shown(clock, capsys, 12).splitlines() == [
        "judging  25 of 100 tokens  2.1 tokens/s  0:00:36 left",
        "judging  50 of 100 tokens  2.1 tokens/s  0:00:24 left",
        "judging  75 of 100 tokens  2.1 tokens/s  0:00:12 left"]
    assert shown(clock, capsys, 5).splitlines() == ["judging  50 of 100 tokens  5 tokens/s  0:00:10 left"]
    monkeypatch.setenv("RANK", "1")
    assert shown(clock, capsys, 12) == ""


@pytest.mark.parametrize("terminal, seconds", [(False, 2), (True, 0.1)])
def test_short_work_shows_nothing(clock, capsys, monkeypatch, terminal, seconds):
    is_terminal(monkeypatch, terminal)
    assert shown(clock, capsys, seconds) == ""


def test_a_terminal_has_one_line_which_is_removed_at_the_end(clock, capsys, monkeypatch):
    is_terminal(monkeypatch, True)
    text = shown(clock, capsys, 1)
    assert text.startswith("\r\033[Kjudging  25 of 100 tokens  25 tokens/s  0:00:03 left\r\033[K")
    assert text.endswith("0:00:01 left\r\033[K") and "\n" not in text


def test_an_error_is_printed_on_a_line_of_its_own(clock, capsys, monkeypatch):
    is_terminal(monkeypatch, True)
    with pytest.raises(ValueError), console.Progress("judging", 100, "tokens") as progress:
        clock(1)
        progress(25)
        raise ValueError
    assert capsys.readouterr().err.endswith("left\r\033[K")


def test_what_was_done_before_does_not_count_for_the_rate(clock, capsys, monkeypatch):
    """A download of 3 GB that goes on at 1 GB, 100 MB in 10 seconds."""
    is_terminal(monkeypatch, False)
    progress = console.Progress("file", 3000, "MB", done=1000)
    clock(10)
    progress(100)
    assert capsys.readouterr().err == "file  1,100 of 3,000 MB  10 MB/s  0:03:10 left\n"


def row(**terms: float) -> dict:
    return {"loss": sum(terms.values()), "lr": 1e-4, "grad_norm": 2.0, "tokens_per_second": 1500.0, **terms}


def test_a_resumed_training_shows_its_first_step_and_its_last(clock, capsys, monkeypatch):
    """The time left is at the rate of this session: steps 7 to 10 of ten."""
    is_terminal(monkeypatch, False)
    show = console.Progress("training", 10, "steps", 6, stays=True)
    for _ in range(7, 11):
        clock(4)
        show(1, in_words(row(kl=1.0, mlm=2.5)))
    rest = "  loss 3.500 (kl 1.000 mlm 2.500)  lr 1.0e-04  |g| 2.00  1,500 tok/s"
    assert capsys.readouterr().err.splitlines() == [
        "training  7 of 10 steps  0.25 steps/s  0:00:12 left" + rest,
        "training  10 of 10 steps  0.25 steps/s  0:00:00 left" + rest]


def test_the_last_step_stays_on_a_terminal(clock, capsys, monkeypatch):
    is_terminal(monkeypatch, True)
    show = console.Progress("training", 2, "steps", 0, stays=True)
    for _ in (1, 2):
        clock(1)
        show(1, in_words(row(mlm=2.5)))
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.endswith("1,500 tok/s\n") and text.count("\r\033[K") == 2


def test_a_line_that_showed_nothing_ends_with_nothing(clock, capsys, monkeypatch):
    is_terminal(monkeypatch, True)
    console.Progress("judging", 100, "tokens", stays=True).close()
    assert capsys.readouterr().err == ""
