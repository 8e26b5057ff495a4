"""Tests of the plots: the models on the frontier, the places of names, and the layers whose attention is
drawn.
"""

import pytest
import torch

from minibert.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from minibert.distill.students import make_student
from minibert.inference.predict import where_it_is
from minibert.model.heads import MaskedLM
from minibert.training import plots as module
from minibert.training.plots import Point, frontier, place_names, plot_attention, plot_quality

POINTS = {name: Point(speed, quality, quality - 1, quality + 1, 10.0) for name, speed, quality in (
    ("slow", 1.0, 60.0), ("beaten", 1.9, 40.0), ("good", 1.95, 50.0), ("equal", 1.95, 50.0),
    ("worse", 1.95, 45.0), ("fast", 2.0, 30.0), ("near", 1.94, 44.0))}


def test_frontier_by_hand():
    assert frontier(POINTS) == ["slow", "good", "equal", "fast"]


def test_every_point_has_a_name_that_can_be_read(tmp_path, plots):
    plt = pytest.importorskip("matplotlib.pyplot")
    from matplotlib.text import Text

    assert plot_quality(POINTS, "score", tmp_path / "quality.png")
    assert (tmp_path / "quality.png").stat().st_size > 0
    figure, axis = plt.subplots()
    axis.set(xlim=(0.9, 2.5), ylim=(20, 70))
    place_names(axis, {name: point[:2] for name, point in POINTS.items()})
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in axis.texts]  # without the line to the point
    assert sorted(text.get_text() for text in axis.texts) == sorted(POINTS)
    plt.close(figure)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_attention_of_teacher_and_students_is_drawn(tmp_path, tiny_config, plots, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    tokenizer = Tokenizer({piece: i for i, piece in enumerate([*SPECIAL_TOKENS, "a", "cat", "sat"])})
    teacher = MaskedLM(tiny_config).eval()
    student = make_student(teacher, layers=1)
    drawn, runtime = [], where_it_is(teacher)
    monkeypatch.setattr(module, "save_figure", lambda figure, target: drawn.append(figure))
    assert plot_attention(teacher, {"before": student}, (2,), tokenizer, "a cat sat", runtime,
                          tmp_path / "a.png")
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes] == ["teacher: layer 2", "before: layer 1"]
    for axis in axes:  # a row of a mean over heads of probabilities
        assert torch.allclose(torch.tensor(axis.images[0].get_array().data).sum(-1), torch.ones(5), atol=1e-5)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["[CLS]", "a", "cat", "sat", "[SEP]"]
    plt.close(drawn[0])
    assert not plot_attention(teacher, {"before": student}, (2,), tokenizer, "cat " * 40, runtime,
                              tmp_path / "a.png")
