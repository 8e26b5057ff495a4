"""docs/figures.py: the pictures are those of the code, and what they show is what the losses read."""

import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from scripts import ROOT
from steps import TINY_MOBILE, data

from minibert.distill.methods import METHODS, terms_of
from minibert.model.encoder import Encoder, Trace
from minibert.model.heads import MaskedLM, build_encoder

sys.path.insert(0, str(ROOT / "docs"))
import figures  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"
FILES = figures.all_figures()


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_up_to_date(name):
    stored = (ROOT / "docs" / "figures" / name).read_text(encoding="utf-8")
    assert stored == FILES[name], "python docs/figures.py draws them anew"


@pytest.mark.parametrize("name", FILES)
def test_the_text_is_text_and_stays_inside(name):
    root = ET.fromstring(FILES[name])
    texts = list(root.iter(f"{SVG}text"))
    assert len(texts) > 10 and "prefers-color-scheme: dark" in FILES[name]
    for text in texts:
        width = len(text.text) * (9.5 if text.get("class") == "title" else 7.9)  # of a wide font
        left = float(text.get("x")) - {"start": 0, "middle": width / 2, "end": width}[text.get("text-anchor")]
        assert left > 0 and left + width < figures.WIDTH, text.text
        assert 0 < float(text.get("y")) < float(root.get("height"))


@pytest.mark.parametrize("name", figures.FIGURES)
def test_the_terms_are_those_of_the_method(name):
    shown = {term.name for term in figures.FIGURES[name]().terms}
    if name in METHODS:
        others = {"mean", "variance"} if name == "mobilebert" else set()  # a note names them
        assert shown | others == set(terms_of(name))
    else:
        assert shown == {"kd": {"soft", "hard"}, "pkd": {"soft", "hard", "patience"},
                         "theseus": {"hard"}}[name]
    assert all(term.name in FILES[f"{name}.svg"] for term in figures.FIGURES[name]().terms)


class Read(tuple):
    """A tuple that writes down which of its entries are read; `first` is the number of entry 0."""

    def note(self, log: set, first: int) -> "Read":
        self.log, self.first = log, first
        return self

    def __getitem__(self, i):
        self.log.add(range(len(self))[i] + self.first)
        return super().__getitem__(i)


INSIDE = [(name, term) for name in ("tinybert", "minilm", "minilmv2", "mobilebert")
          for term in figures.FIGURES[name]().terms if figures.HEAD not in dict(term.pairs)]


@pytest.mark.parametrize("name, term", INSIDE, ids=[f"{name} {term.name}" for name, term in INSIDE])
def test_the_lines_join_the_layers_that_the_loss_reads(name, term, tiny_config, monkeypatch):
    figure, method = figures.FIGURES[name](), METHODS[name]
    kind = MaskedLM if method.head == "mlm" else build_encoder
    shape = TINY_MOBILE if name == "mobilebert" else tiny_config
    student = kind(replace(shape, layers=figure.student)).eval()
    teacher = kind(replace(shape, layers=figure.teacher)).eval()
    logs = {"student": set(), "teacher": set()}
    trace = Encoder.trace

    def noted(self, *arguments):
        log = logs["student" if self is ours else "teacher"]
        made = trace(self, *arguments)
        return Trace(Read(made.hiddens).note(log, 0), *(Read(x).note(log, 1) for x in made[1:]))

    ours = getattr(student, "encoder", student)
    monkeypatch.setattr(Encoder, "trace", noted)
    weights = method.weights(**{other: float(other == term.name) for other in terms_of(name)})
    (step,) = data(1000)
    module = method.module(student, teacher) if method.module else student
    loss, sums = method.loss(module, teacher, step.micro_batches[0], weights, method.counts(step, weights))
    assert term.name in sums
    assert logs == {side: {pair[i] for pair in term.pairs} for i, side in enumerate(("student", "teacher"))}


def test_the_cosine_is_of_the_last_layers():
    figure = figures.distilbert()
    (term,) = (term for term in figure.terms if term.name == "cosine")
    assert term.pairs == [(figure.student, figure.teacher)]
