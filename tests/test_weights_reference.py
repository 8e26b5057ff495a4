"""The released weights against numbers that others have published for them. Opt-in: `pytest -m weights`.

MINIBERT_WEIGHTS names a folder that holds bert-base-uncased/ and distilbert-base-uncased/ (as downloaded, or
converted by weights/convert.py); without it they are looked for on the hub, which needs HF_HUB_OFFLINE=0.
"""

import os
import re
from pathlib import Path

import pytest
import torch

import minibert

IDS = [0, 345, 232, 328, 740, 140, 1695, 69, 6078, 1588, 2]
CAPITAL = [101, 1996, 3007, 1997, 2605, 2003, 103, 1012, 102]  # [CLS] the capital of france is [MASK] . [SEP]
DOG = [101, 7592, 1010, 2026, 3899, 2003, 10140, 102]

# Rows and columns 1 to 3 of the last hidden states or of the logits.
REFERENCES = [
    # tests/models/bert of transformers; there the first token is hidden by the attention mask
    ("bert-base-uncased", "encoder", IDS, 1,
     [[0.4249, 0.1008, 0.7531], [0.3771, 0.1188, 0.7467], [0.4152, 0.1098, 0.7108]]),
    # test/bumblebee/text/bert_test.exs of elixir-nx/bumblebee
    ("bert-base-uncased", "mlm", CAPITAL, 0,
     [[-14.7240, -14.2120, -14.6434], [-10.3125, -9.7459, -9.9923], [-15.1105, -14.8048, -14.9276]]),
    # tests/models/distilbert of transformers; the first token is hidden here too
    ("distilbert-base-uncased", "encoder", IDS, 1,
     [[-0.1639, 0.3299, 0.1648], [-0.1746, 0.3289, 0.1710], [-0.1884, 0.3357, 0.1810]]),
    # test/bumblebee/text/distilbert_test.exs
    ("distilbert-base-uncased", "encoder", DOG, 0,
     [[0.1483, 0.3433, -0.5248], [0.5309, 0.3716, 0.0803], [0.3805, 0.5581, -0.4261]]),
    ("distilbert-base-uncased", "mlm", CAPITAL, 0,
     [[-14.1975, -13.9020, -13.9615], [-8.8192, -8.5549, -8.3866], [-13.4315, -13.2120, -13.3121]]),
]


def released(name: str) -> str | Path:
    """The folder in MINIBERT_WEIGHTS, or the name on the hub."""
    if "MINIBERT_WEIGHTS" in os.environ:
        folder = Path(os.environ["MINIBERT_WEIGHTS"]) / name
        if not folder.is_dir():
            pytest.skip(f"MINIBERT_WEIGHTS holds no {name}/")
        return folder
    return name


def load_released(name: str, head: str):
    """The model, or a skip where it is neither in a folder nor on a hub that can be reached."""
    try:
        return minibert.load(released(name), head)
    except minibert.UserError as error:
        if re.search("could not be downloaded|no model of this name", str(error)):
            pytest.skip(f"{error}; set MINIBERT_WEIGHTS")
        raise


def slice_of(model, ids: list[int], hidden: int) -> torch.Tensor:
    """Rows and columns 1 to 3 of the output, where the first `hidden` tokens are not seen.

    A hidden token is simply left out of the packed sequence, and the others keep their positions. Its own
    output row is lost with it; the rows that are compared begin after it.
    """
    batch = minibert.pack([ids[hidden:]], positions=[list(range(hidden, len(ids)))])
    return model(batch)[1 - hidden:4 - hidden, 1:4]


@pytest.mark.weights
@pytest.mark.parametrize("name, head, ids, hidden, expected", REFERENCES)
def test_released_weights_give_published_numbers(name, head, ids, hidden, expected):
    with torch.inference_mode():
        found = slice_of(load_released(name, head), ids, hidden)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-4)


def test_everything_up_to_the_weights(tiny_config):
    """Leaving a token out is what hiding it by a mask is:
    the same rows as of attention that never looks at it.
    """
    from minibert.model.attention import attend_one
    from minibert.model.encoder import Encoder
    from minibert.model.init import init_weights

    model = init_weights(Encoder(tiny_config)).eval()
    ids = [4, 17, 23, 9, 5, 41]
    found = slice_of(model, ids, 1)
    assert found.shape == (3, 3)
    batch = minibert.pack([ids])
    x = model.embed(batch)
    with torch.no_grad():
        for layer in model.layers:
            q, k, v = (p(x).unflatten(-1, (tiny_config.heads, -1))
                       for p in (layer.query, layer.key, layer.value))
            context = torch.cat([attend_one(q[i:i + 1], k[1:], v[1:]) for i in range(len(ids))]).flatten(1)
            x = layer.attention_norm(x + layer.out(context))
            x = layer.output_norm(x + layer.down(torch.nn.functional.gelu(layer.up(x))))
    torch.testing.assert_close(found, x[1:4, 1:4], rtol=0, atol=1e-5)
