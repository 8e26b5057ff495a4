"""The `transformers` model that bench.py measures beside minibert's has the same shape."""

import pytest

from minibert.bench.transformers_peer import check_peer, transformers_model
from minibert.common.errors import UserError
from minibert.model.config import Config, preset
from minibert.model.heads import MaskedLM


@pytest.mark.parametrize("more", [{}, {"architecture": "distilbert", "segments": 0}])
def test_the_peer_has_as_many_parameters(more):
    pytest.importorskip("transformers")
    config = Config(vocab_size=40, hidden_size=16, layers=2, heads=2, intermediate_size=24, max_positions=20,
                    **more)
    ours, theirs = (sum(p.numel() for p in model.parameters())
                    for model in (MaskedLM(config), transformers_model(config)))
    assert ours == theirs


@pytest.mark.parametrize("student", ["mobilebert-paper", "ib-bert-small"])
def test_a_model_that_transformers_does_not_support_is_an_error(student):
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match="transformers does not support one of the models"):
        check_peer(preset("bert-base"), preset(student))
