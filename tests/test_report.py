"""What long work shows as it goes."""

from minibert import report


def counted(monkeypatch, capsys, terminal: bool, seconds: float, rank: str = "0") -> str:
    """What four parts of 25 of 100 tokens show, `seconds` each."""
    now = [0.0]
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(report.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(report.sys.stderr, "isatty", lambda: terminal)
    tell = report.counting("judging", 100)
    for _ in range(4):
        now[0] += seconds
        tell(25)
    return capsys.readouterr().err


def test_long_work_is_counted_every_ten_seconds(monkeypatch, capsys):
    assert counted(monkeypatch, capsys, False, 12).splitlines() == [
        "judging: 25%  2 tok/s  0:00:36 left", "judging: 50%  2 tok/s  0:00:24 left",
        "judging: 75%  2 tok/s  0:00:12 left"]
    assert counted(monkeypatch, capsys, False, 5).splitlines() == ["judging: 50%  5 tok/s  0:00:10 left"]
    assert counted(monkeypatch, capsys, False, 12, rank="1") == ""


def test_short_work_shows_nothing(monkeypatch, capsys):
    assert counted(monkeypatch, capsys, False, 2) == ""
    assert counted(monkeypatch, capsys, True, 0.1) == ""


def test_a_terminal_has_one_line_which_is_cleared_at_the_end(monkeypatch, capsys):
    shown = counted(monkeypatch, capsys, True, 1)
    assert shown.startswith("\r\033[Kjudging: 25%  25 tok/s  0:00:03 left\r\033[K") and "\n" not in shown
    assert shown.endswith("0:00:01 left\r\033[K")
