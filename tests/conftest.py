"""What all tests share: no network, one thread, fixed seeds,
and a model and batches of a size to try everything.
"""

import os

# before huggingface_hub is imported: a test that needs the network fails
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import random
import signal

import numpy as np
import pytest
import torch

from minibert.model.batch import pack
from minibert.model.config import Config
import minibert.training.plots

# ignored where a script started the suite with `&`; the tests send it, to themselves and to what they start
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tiny tensors: a second thread only waits


@pytest.fixture(autouse=True)
def seeds():
    """Every test draws the same numbers, alone or among others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_default_device():
    """A test that leaves another default device behind fails itself, and not a test after it."""
    yield
    assert torch.get_default_device().type == "cpu"


@pytest.fixture(autouse=True)
def no_plots(request, monkeypatch):
    """As without matplotlib, since a plot takes longer than a tiny training; not for who asks for `plots`."""
    if "plots" not in request.fixturenames:
        monkeypatch.setattr(minibert.training.plots, "pyplot", lambda: None)


@pytest.fixture
def plots():
    """For a test that is about plots."""


@pytest.fixture
def tiny_config():
    """A BERT of two layers; head size 8, sizes that differ so that a mixed-up axis shows."""
    return Config(vocab_size=60, hidden_size=24, layers=2, heads=3, intermediate_size=40, max_positions=32)


@pytest.fixture
def random_batch():
    """A function: lengths -> a packed batch of random ids below `vocab_size` and random segments."""
    def make(lengths, vocab_size=60):
        return pack([torch.randint(vocab_size, (n,)).tolist() for n in lengths],
                    [torch.randint(2, (n,)).tolist() for n in lengths])
    return make
