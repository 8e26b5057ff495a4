"""Tables and times as text, without torch, so that a list of runs is worked through without it."""


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    seconds = int(seconds + 0.5)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def table(rows: list[dict], title: str = "") -> str:
    """Rows of equal keys as a table; numbers right-aligned, the keys as heading."""
    heads = list(rows[0])
    cells = [heads] + [[str(row[head]) for head in heads] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                       for i, (cell, w) in enumerate(zip(line, widths)))
             for line in cells]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(([title] if title else []) + lines)
