"""The `transformers` model that bench.py measures beside minibert's has the same shape."""

import pytest

from minibert.bench.transformers_peer import transformers_model
from minibert.model.config import Config
from minibert.model.heads import MaskedLM


@pytest.mark.parametrize("more", [{}, {"architecture": "distilbert", "segments": 0}])
def test_the_peer_has_as_many_parameters(more):
    pytest.importorskip("transformers")
    config = Config(vocab_size=40, hidden_size=16, layers=2, heads=2, intermediate_size=24, max_positions=20,
                    **more)
    ours, theirs = (sum(p.numel() for p in model.parameters())
                    for model in (MaskedLM(config), transformers_model(config)))
    assert ours == theirs
