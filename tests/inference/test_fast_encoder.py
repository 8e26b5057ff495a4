"""The inference mode: the same numbers as the model, sentences that never meet, and clear refusals."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import minibert
from minibert.common.errors import UserError
from minibert.common.runtime import native_bf16
from minibert.inference import fast_encoder
from minibert.inference.fast_encoder import MODES, fast, kernels_of, rounded
from minibert.inference.packed_linear import HalfWeights, Packed, Plain, best_int8
from minibert.inference.predict import embed, predict
from minibert.model import attention
from minibert.model.attention import attend_one
from minibert.model.batch import pack
from minibert.model.encoder import Encoder
from minibert.model.init import init_weights
from minibert.model.heads import Classifier, MaskedLM, PreTraining, Span, encoder_of

CPU = torch.device("cpu")
# largest change of an output of size about 1, for random weights: what the rounding of each mode costs
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 5e-2, "int8": 5e-2}
HEADS = (partial(Encoder, pooler=True), MaskedLM, PreTraining, Classifier, Span)


@pytest.fixture
def any_mode(monkeypatch):
    """bf16 is tried where the processor emulates it, too: slowly, but with the same numbers."""
    monkeypatch.setattr(fast_encoder, "native_bf16", lambda device: True)


def skip_without_kernel(mode):
    if {"fp16": not HalfWeights.runs(), "int8": best_int8() is None}.get(mode):
        pytest.skip(f"no kernel for {mode} here")


def build(head, config):
    """A model with weights large enough that layers change what passes through them."""
    model = init_weights(head(config)).eval().requires_grad_(True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def first(out):
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_does_what_the_model_does(tiny_config, random_batch, any_mode, head, architecture, mode):
    skip_without_kernel(mode)
    config = replace(tiny_config, architecture=architecture, segments=2 if architecture == "bert" else 0)
    model, batch = build(head, config), random_batch([5, 9, 9, 1])
    with torch.no_grad():
        expected, found = first(model(batch)), first(fast(model, mode)(batch))
    size = expected.abs().max()
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found - expected).abs().max() <= TOLERANCE[mode] * size


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_a_fast_layer_written_out(tiny_config, random_batch, activation):
    config = replace(tiny_config, activation=activation, layers=1)
    model, batch = build(Encoder, config), random_batch([7])
    layer, act = model.layers[0], {"gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "relu": nn.ReLU()}
    with torch.no_grad():
        x = model.embed(batch)
        q, k, v = (f(x).view(7, 3, 8) for f in (layer.query, layer.key, layer.value))
        x = layer.attention_norm(x + layer.out(attend_one(q, k, v).flatten(1)))
        x = layer.output_norm(x + layer.down(act[activation](layer.up(x))))
        torch.testing.assert_close(fast(model)(batch), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_sentences_packed_together_are_as_alone(tiny_config, any_mode, mode):
    """One has activations a hundred times as large: with one scale for all, int8 would lose the others."""
    skip_without_kernel(mode)
    model = build(Classifier, tiny_config)
    with torch.no_grad():
        model.encoder.norm.weight.fill_(1)
        model.encoder.word.weight[50] *= 100  # LayerNorm hides the size, so the outlier is made behind it
        model.encoder.layers[0].attention_norm.weight[3] *= 100
    made = fast(model, mode)
    sentences = [[4, 7, 9, 3], [50] * 6, [8, 8, 2, 9, 30, 11, 5], [50, 4], [1, 2, 3, 4]]
    with torch.no_grad():
        together = made(pack(sentences))
        alone = torch.cat([made(pack([one])) for one in sentences])
    # rounding of sums in another order; int8 and 16 bits may round a number the other way then
    tolerance = {"fp32": 1e-5, "fp16": 1e-5, "bf16": 2e-2, "int8": 1e-3}[mode]
    size = float(alone.abs().max().clamp(min=1))
    torch.testing.assert_close(together, alone, rtol=0, atol=tolerance * size)


class OnlyFinite(TorchDispatchMode):
    """Inside, no operation makes a value that is not finite, or is given a scale of 0."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "quantize_per_channel" in str(func):
            assert args[1].min() > 0
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor) and t.is_floating_point() and "empty" not in str(func):
                assert t.isfinite().all(), func
        return out


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_zeros_are_divided_by_no_zero(tiny_config, random_batch, any_mode, mode):
    """A query that is all zeros, as after pruning, and a feed-forward network with zeros inside at every
    token. What a kernel makes of numbers that are not finite depends on the processor.
    """
    model, batch = build(Encoder, tiny_config), random_batch([5, 9])
    with torch.no_grad():
        for linear in (model.layers[0].query, model.layers[1].up):
            linear.weight.zero_()
            linear.bias.zero_()
        expected = model(batch)
        try:
            with OnlyFinite():
                found = fast(model, mode)(batch)
        except UserError:
            pytest.skip(f"no {mode} on this processor")
    assert (found - expected).abs().max() <= TOLERANCE[mode] * expected.abs().max()


def test_the_model_stays_as_it_was(tiny_config, random_batch):
    model, batch = build(Classifier, tiny_config).train(), random_batch([4, 6])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = fast(model)
    assert model.training and not made.training and type(model.encoder.layers[0]).__name__ == "Layer"
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in made.parameters())
    made(batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # nothing large is held twice by the two models
    assert made.encoder.word.weight.data_ptr() == model.encoder.word.weight.data_ptr()


def test_predict_and_embed_take_it():
    tokenizer = minibert.load_tokenizer("weights/teacher")
    model = minibert.fast(minibert.load("weights/teacher", head="encoder"))
    texts = ["a short text", "another text, which is a good deal longer than the first"]
    np.testing.assert_allclose(embed(model, tokenizer, texts),
                               embed(minibert.load("weights/teacher", head="encoder"), tokenizer, texts),
                               rtol=0, atol=1e-5)
    classifier = init_weights(Classifier(replace(minibert.preset("bert-L2-H128"), vocab_size=8192)))
    np.testing.assert_allclose(predict(minibert.fast(classifier), tokenizer, texts),
                               predict(classifier, tokenizer, texts), rtol=0, atol=1e-5)


def test_neither_trained_nor_saved(tiny_config, tmp_path):
    made = fast(build(Classifier, tiny_config))
    with pytest.raises(UserError, match="cannot be saved"):
        minibert.save(made, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(UserError, match="inference only"):
        made.train()


def test_modes_that_do_not_run_are_refused(tiny_config, monkeypatch):
    model = build(Classifier, tiny_config)
    with pytest.raises(UserError, match="fp32, fp16, bf16, int8"):
        fast(model, "int4")
    monkeypatch.setattr(fast_encoder, "native_bf16", lambda device: False)
    with pytest.raises(UserError, match="not native here"):
        fast(model, "bf16")
    monkeypatch.setattr(fast_encoder, "best_int8", lambda: None)
    with pytest.raises(UserError, match="int8 does not run on this processor"):
        fast(model, "int8")
    with pytest.raises(UserError, match="does not run on cuda"):
        kernels_of("int8", torch.device("cuda"))
    model.encoder.layers[1] = nn.Identity()
    with pytest.raises(UserError, match="layers of the class Identity"):
        fast(model)


def test_without_onednn_the_plain_product(monkeypatch):
    assert kernels_of("fp32", CPU)[0] is (Packed if Packed.runs() else Plain)
    monkeypatch.setattr(Packed, "runs", lambda dtype: False)
    assert kernels_of("fp32", CPU) == (Plain, "fp32: torch's linear; attention in fp32")


@pytest.mark.parametrize("mode", MODES)
def test_it_says_what_was_chosen(tiny_config, any_mode, mode):
    skip_without_kernel(mode)
    made = fast(build(Classifier, tiny_config), mode)
    kernel = type(made.encoder.layers[0].qkv)
    assert made.kernels == f"{mode}: {kernel.name}; attention in fp32"
    assert kernel.__name__ in repr(made)


def test_attention_in_bf16_where_the_processor_gains_by_it(tiny_config, random_batch, any_mode, monkeypatch):
    """As with AMX, here with the kernels that there are: other roundings, and sentences that never meet."""
    model, batch = build(Encoder, tiny_config), random_batch([5, 9, 9, 1])
    with torch.no_grad():
        expected = fast(model, "bf16")(batch)
        monkeypatch.setattr(attention, "features", lambda: {"amx_bf16"})
        made = fast(model, "bf16")
        found = made(batch)
        assert made.kernels.endswith("attention in bf16") and not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE["bf16"])
        wild = batch._replace(ids=torch.cat([batch.ids[:5].flip(0), batch.ids[5:]]))
        assert torch.equal(made(wild)[5:], found[5:])


@pytest.mark.parametrize("mode", MODES)
def test_another_sentence_changes_no_bit(tiny_config, any_mode, mode):
    """In batches of one shape, a sentence's numbers do not depend on what the others say."""
    skip_without_kernel(mode)
    made = fast(build(Classifier, tiny_config), mode)
    sentence, others = [4, 7, 9, 3], ([50] * 6, [8, 8, 2, 9, 30, 11])
    with torch.no_grad():
        first, second = (made(pack([other, sentence])) for other in others)
    assert torch.equal(first[1], second[1]) and not torch.equal(first[0], second[0])


def test_bf16_is_what_autocast_computes(tiny_config, random_batch, monkeypatch):
    monkeypatch.setattr(fast_encoder, "native_bf16", lambda device: True)
    model, batch = build(Encoder, tiny_config), random_batch([5, 8])
    with torch.no_grad():
        found = fast(model, "bf16")(batch)
        with torch.autocast("cpu", torch.bfloat16):
            expected = model(batch)
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=2e-2)
    assert rounded(Plain, torch.bfloat16, torch.ones(2, 2), torch.ones(2)).weight.dtype == torch.bfloat16
    if not native_bf16(CPU):
        monkeypatch.undo()
        with pytest.raises(UserError, match="not native"):
            fast(model, "bf16")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["fp32", "fp16", "bf16"])
def test_on_a_gpu(tiny_config, random_batch, mode):
    model, batch = build(Classifier, tiny_config).cuda(), random_batch([5, 9, 9, 1]).to("cuda")
    with torch.no_grad():
        expected, found = model(batch), fast(model, mode)(batch)
    assert (found - expected).abs().max() <= max(TOLERANCE[mode], 1e-4) * expected.abs().max()
    assert encoder_of(model).word.weight.is_cuda
