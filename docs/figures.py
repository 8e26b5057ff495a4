"""Draws the figures of the methods, docs/figures/*.svg. They show which parts of student and teacher each
loss term compares.

    python docs/figures.py

The pairs of layers come from the functions that the training uses: `copied_layers`, `imitated_layers`,
`patience_layers`, `layer_groups`, `stages` and `rates`. The names of the terms are those in metrics.jsonl.
The files are plain SVG, and their text can be searched. Their colours depend on the light or dark mode of the
reader's system.
"""

import sys
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds minibert if it is not installed

from minibert.common.disk import write_text  # noqa: E402
from minibert.distill.students import copied_layers, imitated_layers  # noqa: E402
from minibert.distill.task_kd import patience_layers  # noqa: E402
from minibert.distill.theseus import layer_groups  # noqa: E402
from minibert.training import mobilebert_stages as mobile  # noqa: E402

FOLDER = Path(__file__).resolve().parent / "figures"
WIDTH, ROW, BOX = 860, 34, 170  # the width of the figure, height of a layer, width of a box, in pixels
STUDENT, TEACHER, MIDDLE = 40, WIDTH - 40 - BOX, WIDTH // 2  # x coordinates of both columns and of the centre
HEAD = 1000  # the number of the head among the layers; it is drawn above all of them

# Every figure has its own background, because a page may be light on a system in dark mode.
STYLE = """
text { font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.card { fill: #ffffff; stroke: #d0d7de } .box { fill: #f3f5f8; stroke: #8c959f }
.title { font-weight: 600; font-size: 16px } .name { font-weight: 600 } .note { fill: #59636e }
.line { stroke-width: 2; fill: none } .line.tip { stroke-dasharray: none }
.copy { stroke: #8c959f; stroke-width: 1.5; fill: none }
.t0 { stroke: #0969da } .t1 { stroke: #bc4c00; stroke-dasharray: 7 4 }
.t2 { stroke: #1a7f37; stroke-dasharray: 2 4 } .t3 { stroke: #8250df; stroke-dasharray: 10 3 2 3 }
.moves { fill: #0969da } .slow { fill: #9cc4f5 } .distil { fill: #1a7f37 } .still { fill: #eaeef2 }
.on { fill: #ffffff; font-weight: 600 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .card { fill: #0d1117; stroke: #3d444d } .box { fill: #1c232c; stroke: #7d8590 }
.note { fill: #9198a1 } .copy { stroke: #7d8590 }
.t0 { stroke: #58a6ff } .t1 { stroke: #f0883e } .t2 { stroke: #3fb950 } .t3 { stroke: #bc8cff }
.moves { fill: #1f6feb } .slow { fill: #17406f } .distil { fill: #238636 } .still { fill: #21262d }
.on { fill: #ffffff }
}
"""


class Term(NamedTuple):
    """One term of a loss."""

    name: str  # as in metrics.jsonl
    text: str  # one line that says what the term computes
    # (student, teacher): 0 means the embeddings, 1 to L the layers, HEAD the head, and None the data
    pairs: list[tuple[int, int | None]]


class Figure(NamedTuple):
    """The content of one figure: the two models, and the terms of one method."""

    title: str
    student: int  # number of layers
    teacher: int
    at: list[int]  # for the embeddings and each student layer: the teacher layer at the same height
    terms: list[Term]
    links: list[tuple[int, int]] = []  # (student, teacher): drawn in grey, because no term compares them
    link: tuple[str, str] = ("start", "before training, the student's weights are copied from here")
    head: str = ""  # the name of the head, if a term uses the heads
    source: str = ""  # the name of the data, if a term uses data
    notes: list[str] = []


def evenly(student: int, teacher: int) -> list[int]:
    """For the embeddings and each student layer, the teacher layer at the same height, with equal distances.
    """
    return list(imitated_layers(student, teacher))


def distilbert() -> Figure:
    """DistilBERT: the student starts as half of the teacher's layers. Logits and last states are compared."""
    beside = [0, *(layer + 1 for layer in copied_layers(6, 12))]
    return Figure("DistilBERT: 6 layers learn from 12", 6, 12, beside, [
        Term("kl", "KL over the vocabulary at temperature T, all tokens; logits (N, V)", [(HEAD, HEAD)]),
        Term("mlm", "cross-entropy with the masked words; logits (N, V)", [(HEAD, None)]),
        Term("cosine", "1 - cos of the last states, all tokens; states (N, D)", [(6, 12)])],
        [*enumerate(beside), (HEAD, HEAD)], head="MLM head", source="masked words")


def tinybert() -> Figure:
    """TinyBERT: compares the embeddings, and the states and scores of student layer m and teacher layer g(m).
    """
    g = imitated_layers(4, 12)
    layers = [(m, g[m]) for m in range(1, 5)]
    return Figure("TinyBERT, general distillation: 4 thin layers learn from 12", 4, 12, list(g), [
        Term("embedding", "mean square of W h_s - h_t; embeddings (N, D)", [(0, 0)]),
        Term("hidden", "mean square of W h_s - h_t; states after the layer (N, D)", layers),
        Term("attention", "mean square of the difference of scores q k' / sqrt(E); (H, T, T)", layers)],
        notes=["W is a learned matrix from the student's width to the teacher's. Each pair has its own W."])


def minilm() -> Figure:
    """MiniLM: compares relations of the last layers."""
    title = "MiniLM: two relations of the last layers"
    return Figure(title, 4, 12, evenly(4, 12), [
        Term("attention_relation", "KL of softmax(q k' / sqrt(E)), row by row; (H, T, T)", [(4, 12)]),
        Term("value_relation", "KL of softmax(v v' / sqrt(E)), row by row; (H, T, T)", [(4, 12)])],
        notes=["q, k, v are those of the layer's attention. Both models have H heads. Other layers are not "
               "compared."])


def minilmv2() -> Figure:
    """MiniLMv2: compares relations of the last layers in R relation heads."""
    said = "KL of softmax({0} {0}' / sqrt(D / R)), row by row; (R, T, T)"
    return Figure("MiniLMv2: three relations of the last layers, in R relation heads", 4, 12, evenly(4, 12), [
        Term(f"{x}_relation", said.format(x), [(4, 12)]) for x in "qkv"],
        notes=["The heads of a layer are joined to D numbers, and these are split into R relation heads.",
               "So the two models may have different numbers of heads."])


def mobilebert() -> Figure:
    """MobileBERT: compares each student layer with the teacher layer of the same number, and the logits."""
    every = [(layer, layer) for layer in range(1, 7)]
    return Figure("MobileBERT: 6 thin blocks learn from 6 of an IB-BERT (published: 24 from 24)", 6, 6,
                  list(range(7)), [
        Term("feature_map", "mean square of h_s - h_t, both normalised; states after the block (N, D)",
             every),
        Term("attention", "KL of softmax(q k' / sqrt(E)), row by row; (H, T, T)", every),
        Term("kd", "KL over the vocabulary, masked tokens; logits (M, V)", [(HEAD, HEAD)]),
        Term("mlm", "cross-entropy with the masked words; logits (M, V)", [(HEAD, None)])],
        [(0, 0), (HEAD, HEAD)], head="MLM head", source="masked words",
        notes=["The terms mean and variance compare the mean and the variance of the same states over D.",
               "The figure of the three schedules shows when each term is minimised."])


def kd() -> Figure:
    """kd: the student learns the outputs of a fine-tuned teacher and the labels of the task."""
    return Figure("kd: the outputs of a teacher that was fine-tuned on the task", 6, 12, evenly(6, 12), [
        Term("soft", "classes, spans: KL at temperature T; a score: squared error", [(HEAD, HEAD)]),
        Term("hard", "classes, spans: cross-entropy with the label; a score: squared error", [(HEAD, None)])],
        head="task head", source="labels of the task",
        notes=["The loss is alpha soft + (1 - alpha) hard. Layers are not compared, so the student may have "
               "any shape."])


def pkd() -> Figure:
    """PKD: also compares the [CLS] states of the layers below the last layer."""
    pairs = {which: patience_layers(6, 12, which) for which in ("skip", "last")}
    return Figure("PKD: kd, and the [CLS] states of the layers below the last", 6, 12, evenly(6, 12), [
        Term("soft", "as in kd", [(HEAD, HEAD)]), Term("hard", "as in kd", [(HEAD, None)]),
        Term("patience", "skip: mean square of the normalised [CLS] states; (S, D)", pairs["skip"]),
        Term("patience", "last: the same, with the teacher's last layers below the top layer",
             pairs["last"])],
        head="task head", source="labels of the task",
        notes=["skip and last are values of --teacher-layers. One of the two is used."])


def theseus() -> Figure:
    """Theseus: the student's layers and the groups of teacher layers that they replace."""
    pairs = [(m, layer + 1) for m, group in enumerate(layer_groups(6, 12), 1)
             for layer in reversed(group)]
    title = "Theseus: the student's layers replace groups of the teacher's layers"
    return Figure(title, 6, 12, evenly(6, 12), [
        Term("hard", "classes, spans: cross-entropy with the label; a score: squared error", [(HEAD, None)])],
        pairs, ("replaced", "with probability p, the student's layer runs in place of these teacher layers"),
        head="task head", source="labels of the task",
        notes=["p rises to 1 during training. Then the student's layers are trained without teacher layers.",
               "Embeddings and head are the teacher's and are not trained."])


def embedding() -> Figure:
    """embedding: compares the pooled vectors of two sentence encoders."""
    beside = [0, *(layer + 1 for layer in copied_layers(3, 6))]
    return Figure("embedding: the sentence vectors of 3 layers learn from those of 6", 3, 6, beside, [
        Term("cosine", "1 - cos of the vectors; (S, D)", [(HEAD, HEAD)]),
        Term("mse", "mean square of the difference of the vectors; (S, D)", [(HEAD, HEAD)]),
        Term("hidden", "mean square of the difference of the last states; (N, D)", [(3, 6)])],
        [*enumerate(beside)], head="pooling",
        notes=["By default the weight of cosine is 1, and the weights of mse and hidden are 0."])


FIGURES = {draw.__name__: draw for draw in (
    distilbert, tinybert, minilm, minilmv2, mobilebert, embedding, kd, pkd, theseus)}


# ---------------------------------------------------------------- drawing

def text(x: float, y: float, said: str, kind: str = "", anchor: str = "start") -> str:
    """Draws one line of text. `y` is its base line."""
    return (f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"' + (f' class="{kind}"' if kind else "")
            + f">{escape(said)}</text>")


def box(x: float, y: float, said: str) -> str:
    """Draws a box with one line of text."""
    return (f'<rect x="{x:g}" y="{y:g}" width="{BOX}" height="{ROW - 8}" rx="5" class="box"/>'
            + text(x + BOX / 2, y + ROW / 2 + 1, said, anchor="middle"))


def page(height: float, title: str, parts: list[str]) -> str:
    """Returns the text of the SVG file."""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
            f'viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">\n'
            f'<style>{STYLE}</style>\n'
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="8" class="card"/>\n'
            + text(20, 32, title, "title") + "\n" + "\n".join(parts) + "\n</svg>\n")


def drawn(figure: Figure) -> str:
    """Draws the student on the left, the teacher on the right, and a line for each pair of a term."""
    top = 96 + (ROW if figure.head else 0)  # the upper edge of the teacher's last layer

    def height(layer: int) -> float:  # the y coordinate of the middle of a teacher layer
        return 96 + (ROW - 8) / 2 if layer == HEAD else top + (figure.teacher - layer) * ROW + (ROW - 8) / 2

    rows = {m: height(layer) for m, layer in enumerate(figure.at)} | {HEAD: height(HEAD)}
    parts = [text(STUDENT + BOX / 2, 76, f"student, {figure.student} layers", "title", "middle"),
             text(TEACHER + BOX / 2, 76, f"teacher, {figure.teacher} layers", "title", "middle")]
    for x, last, place in ((STUDENT, figure.student, rows.get), (TEACHER, figure.teacher, height)):
        for layer in range(last + 1):
            parts.append(box(x, place(layer) - (ROW - 8) / 2, f"layer {layer}" if layer else "embeddings"))
        if figure.head:
            parts.append(box(x, place(HEAD) - (ROW - 8) / 2, figure.head))
    if figure.source:
        parts.append(box(MIDDLE - 85, 52, figure.source))
    # Lines that end at the same box are drawn side by side. The order from the top: data, terms, links.
    ending: dict[int, list[tuple[str, int | None]]] = {}
    for kind, term in sorted(enumerate(figure.terms), key=lambda item: item[1].pairs[0][1] is not None):
        for left, right in term.pairs:
            ending.setdefault(left, []).append((f"line t{kind}", right))
    for left, right in figure.links:
        ending.setdefault(left, []).append(("copy", right))
    tip = STUDENT + BOX + 3
    for left, lines in ending.items():
        for number, (kind, right) in enumerate(lines):
            shift = (number - (len(lines) - 1) / 2) * 8
            y = rows[left] + shift
            begin = f"{TEACHER - 4} {height(right) + shift:g}" if right is not None else (
                f"{MIDDLE} {44 + ROW} V{y:g}")
            parts.append(f'<path d="M{begin} L{tip + 3} {y:g}" class="{kind}"/>')
            if kind != "copy":
                parts.append(f'<path d="M{tip + 8} {y - 4:g} L{tip} {y:g} l8 4" class="{kind} tip"/>')
    y = height(0) + ROW + 12
    legend = [(f"line t{kind}", term.name, term.text) for kind, term in enumerate(figure.terms)]
    if figure.links:
        legend.append(("copy", *figure.link))
    for kind, name, said in legend:
        parts += [f'<path d="M{STUDENT} {y - 5:g} h44" class="{kind}"/>', text(STUDENT + 54, y, name, "name"),
                  text(STUDENT + 206, y, said)]
        y += 24
    for note in figure.notes:
        parts.append(text(STUDENT, y, note, "note"))
        y += 22
    return page(y, figure.title, parts)


def schedules(layers: int = 6, steps: int = 740) -> str:
    """Draws MobileBERT's three schedules: what each part of the student learns in each step."""
    left, right, row = 150, WIDTH - 30, 22
    meanings = {"akt": "auxiliary: knowledge transfer of all layers together with distillation",
                "jkt": "joint: first knowledge transfer of all layers, then distillation",
                "pkt": "progressive: knowledge transfer of one layer after the other, then distillation"}
    # The rows from the top. The number is the index of the part in `rates`: head and embeddings have index 0.
    bands = [("head", 0), *((f"layer {n}", n) for n in range(layers, 0, -1)), ("embeddings", 0)]
    parts, y = [], 62.0

    def x_of(step: float) -> float:
        return left + (right - left) * step / steps

    def bar(stage: mobile.Stage, kind: str, above: float, height: int) -> str:
        return (f'<rect x="{x_of(stage.first) + 1:.5g}" y="{above:g}" class="{kind}" height="{height}" '
                f'width="{x_of(stage.last) - x_of(stage.first) - 2:.5g}"/>')

    for schedule in mobile.SCHEDULES:
        parts.append(text(20, y, f"{schedule}, {meanings[schedule]}", "title"))
        y += 10
        for name, part in bands:
            parts.append(text(left - 12, y + row - 6, name, anchor="end"))
            for stage in mobile.stages(schedule, steps, layers):
                middle = (stage.first + stage.last) // 2
                moves = mobile.rates(stage, middle, layers, 0.1)[part] > 0
                imitates = part in stage.layers
                parts.append(bar(stage, "moves" if imitates else "distil" if stage.distil else
                                 "slow" if moves else "still", y + 1, row - 2))
                if imitates and stage.distil:
                    parts.append(bar(stage, "distil", y + row - 6, 5))
                if name == "head" and stage.distil:
                    parts.append(text(x_of(middle), y + row - 6, "distillation: mlm and kd", "on", "middle"))
            y += row
        y += 34
    parts += [text(left, y - 14, "first step", "note"), text(right, y - 14, "last step", "note", "end")]
    y += 14
    for kind, said in (
            ("moves", "imitates the teacher's block; before distillation the rate is "
                      f"{mobile.IN_STAGE:g} times --lr"),
            ("slow", f"imitated its block before; the rate is now {mobile.AFTER_STAGE:g} times --lr"),
            ("distil", "learns from the masked words and from the teacher's logits"),
            ("still", "is not trained")):
        parts += [f'<rect x="20" y="{y - 13:g}" width="34" height="16" class="{kind}"/>', text(66, y, said)]
        y += 24
    return page(y + 4, "MobileBERT: what each part of the student learns, in three schedules", parts)


def main() -> None:
    """Writes all figures."""
    FOLDER.mkdir(exist_ok=True)
    for name, svg in all_figures().items():
        write_text(FOLDER / name, svg)
        print(FOLDER / name)


def all_figures() -> dict[str, str]:
    """Returns a dictionary: file name -> content."""
    return {f"{name}.svg": drawn(figure()) for name, figure in FIGURES.items()} | {
        "mobilebert-schedules.svg": schedules()}


if __name__ == "__main__":
    main()
