"""The shapes of the papers have the papers' sizes, and an impossible shape is refused."""

from dataclasses import FrozenInstanceError, replace

import pytest

from minibert.common.errors import UserError
from minibert.model.config import PRESETS, Config, MobileConfig, preset
from minibert.model.init import on_meta
from minibert.model.heads import Classifier, MaskedLM, PreTraining, Span, build_encoder


def with_pooler(config):
    return build_encoder(config, pooler=True)


def parameters(model_class, config) -> int:
    return sum(p.numel() for p in on_meta(model_class, config).parameters())


# preset, what is counted, exact count, published (millions), its rounding (millions), where it is published.
# `build_encoder` has no pooler, `with_pooler` is what Hugging Face calls BertModel.
PUBLISHED = [
    ("bert-base", PreTraining, 110_106_428, 110, 1, "Devlin et al. 2018, section 3"),
    ("bert-base", with_pooler, 109_482_240, 109, 1, "Jiao et al. 2020, table 1"),
    # 340M is rounded to tens; it is often quoted as 335M, the encoder with its pooler
    ("bert-large", PreTraining, 336_226_108, 340, 10, "Devlin et al. 2018, section 3"),
    ("bert-large", with_pooler, 335_141_888, 335, 1, "Hugging Face, list of pretrained models"),
    ("distilbert", build_encoder, 66_362_880, 66, 1, "Sanh et al. 2019, table 3"),
    ("distilbert-4", build_encoder, 52_187_136, 52.2, 0.1, "Jiao et al. 2020, table 1"),
    ("bert-pkd-4", build_encoder, 52_188_672, 52.2, 0.1, "Jiao et al. 2020, table 1"),
    ("bert-pkd-3", with_pooler, 45_691_392, 45.7, 0.1, "Sun et al. 2019, table of model sizes"),
    ("bert-pkd-6", with_pooler, 66_955_008, 67.0, 0.1, "Sun et al. 2019, table of model sizes"),
    # 45.3M and 66.5M are the count of no set of tensors that we found;
    # without the pooler it is 45.1M and 66.4M
    ("bert-pkd-3", build_encoder, 45_100_800, 45.3, 0.5, "Sun et al. 2020 (MobileBERT), table of results"),
    ("bert-pkd-6", build_encoder, 66_364_416, 66.5, 0.5, "Sun et al. 2020 (MobileBERT), table of results"),
    ("tinybert-4", PreTraining, 14_479_676, 14.5, 0.1, "Jiao et al. 2020, table 1"),
    ("tinybert-4", with_pooler, 14_350_248, 14.4, 0.1, "our count of the released checkpoint without heads"),
    ("tinybert-6", with_pooler, 66_955_008, 67.0, 0.1, "Jiao et al. 2020, table 1"),
    # the same shape as Google's L4-H512, printed there as 29.1M
    ("bert-small", PreTraining, 29_058_876, 29.2, 0.5, "Jiao et al. 2020, table 1"),
    ("bert-L2-H128", PreTraining, 4_433_468, 4.4, 0.1, "Turc et al. 2019, table of parameters (Tiny)"),
    ("bert-L4-H256", PreTraining, 11_267_900, 11.3, 0.1, "Turc et al. 2019, table of parameters (Mini)"),
    ("bert-L4-H512", PreTraining, 29_058_876, 29.1, 0.1, "Turc et al. 2019, table of parameters (Small)"),
    ("bert-L8-H512", PreTraining, 41_668_412, 41.7, 0.1, "Turc et al. 2019, table of parameters (Medium)"),
    ("bert-L12-H768", PreTraining, 110_106_428, 110.1, 0.1, "Turc et al. 2019, table of parameters (Base)"),
    ("mobilebert-paper", build_encoder, 25_359_104, 25.3, 0.2, "Sun et al. 2020, table of results"),
    ("mobilebert-without-opt", build_encoder, 25_359_104, 25.3, 0.2, "Sun et al. 2020, table of results"),
    # 15.1M is the count of no set of tensors that we found
    ("mobilebert-tiny", build_encoder, 15_485_696, 15.1, 0.8, "Sun et al. 2020, table of results"),
    ("ib-bert-large", build_encoder, 294_205_184, 293, 3, "Sun et al. 2020, table of model settings"),
]


@pytest.mark.parametrize("name, model, exact, published, rounding, source", PUBLISHED)
def test_parameters_as_published(name, model, exact, published, rounding, source):
    count = parameters(model, PRESETS[name])
    assert count == exact
    assert abs(count / 1e6 - published) <= rounding / 2, source


# Hugging Face's classes of the same two models, tied tensors counted once.
@pytest.mark.parametrize("name, model, exact", [
    ("bert-base", MaskedLM, 109_514_298), ("bert-base", Classifier, 109_483_778),
    ("bert-base", Span, 108_893_186), ("distilbert", MaskedLM, 66_985_530),
    ("distilbert", Classifier, 66_955_010), ("distilbert", Span, 66_364_418),
    ("mobilebert", MaskedLM, 36_596_538), ("mobilebert", Span, 24_582_914),
    # 262,656 less than transformers has by default: the released model has no layer that pools
    ("mobilebert", PreTraining, 36_860_220 - 262_656), ("mobilebert", Classifier, 24_845_570 - 262_656),
])
def test_parameters_of_heads(name, model, exact):
    assert parameters(model, PRESETS[name]) == exact


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_by_formula(name):
    c = PRESETS[name]
    D, F = c.hidden_size, c.intermediate_size
    tables = (c.vocab_size + c.max_positions + c.segments) * D
    if isinstance(c, MobileConfig):
        E, B = c.embedding_size, c.bottleneck_size
        tables += (E - D) * c.vocab_size + 3 * E * D + D  # a thinner word table; trigrams
        qk, v, extra = {"shared": (B, D, D * B + B + 2 * B), "hidden": (D, D, 0), "bottleneck": (B, B, 0)}[
            c.attention_input]
        feed_forward = (B * F + F) + (F * B + B) + 2 * B
        layer = (D * B + B + 2 * B) + extra + 2 * (qk * B + B) + (v * B + B) + (B * B + B + 2 * B) + (
            c.feed_forwards * feed_forward + (B * D + D + 2 * D))
    else:
        layer = 4 * (D * D + D) + (D * F + F) + (F * D + D) + 2 * 2 * D  # q k v out, up, down, two LayerNorms
    assert parameters(build_encoder, c) == tables + 2 * D + c.layers * layer


def test_all_presets_named_in_the_papers():
    miniatures = [name for name in PRESETS if name.startswith("bert-L") and "-H" in name]
    assert len(miniatures) == 24
    assert {PRESETS[name].head_size for name in miniatures} == {64}
    assert PRESETS["tinybert-4"].head_size == 26
    assert {c.norm_eps for c in PRESETS.values()} == {1e-12}
    for name in ("distilbert", "distilbert-4"):
        assert (PRESETS[name].architecture, PRESETS[name].segments, PRESETS[name].classifier_dropout) == (
            "distilbert", 0, 0.2)


def test_unknown_preset_lists_the_known_ones():
    assert preset("bert-base") == Config()
    with pytest.raises(UserError, match="'bert-bsae' is no preset.*bert-base, .*tinybert-4"):
        preset("bert-bsae")


@pytest.mark.parametrize("change, complaint", [
    (dict(architecture="roberta"), "architecture 'roberta'.*bert or distilbert"),
    (dict(activation="swish"), "activation 'swish'.*gelu_tanh"),
    (dict(vocab_size=0), "vocab_size is 0"),
    (dict(hidden_size=0), "hidden_size is 0"),
    (dict(layers=0), "layers is 0"),
    (dict(heads=0), "heads is 0"),
    (dict(intermediate_size=-1), "intermediate_size is -1"),
    (dict(max_positions=0), "max_positions is 0"),
    (dict(hidden_size=100, heads=12), "hidden_size 100 is not a multiple of heads 12"),
    (dict(architecture="distilbert"), "segments must be 0"),
    (dict(dropout=1.0), "dropout is 1.0"),
    (dict(dropout=-0.1), "dropout is -0.1"),
    (dict(attention_dropout=1.5), "attention_dropout is 1.5"),
    (dict(classifier_dropout=1), "classifier_dropout is 1"),
    (dict(segments=-1), "segments is -1"),
    (dict(pad_id=30522), "pad_id 30522 is not in the vocabulary"),
    (dict(labels=()), "labels is empty"),
])
def test_impossible_shapes_are_refused(change, complaint):
    with pytest.raises(UserError, match=complaint):
        replace(Config(), **change)


@pytest.mark.parametrize("change, complaint", [
    (dict(architecture="bert"), "architecture 'bert' is not known: mobilebert"),
    (dict(bottleneck_size=126), "bottleneck_size 126 is not a multiple of heads 4"),
    (dict(bottleneck_size=0), "bottleneck_size is 0"),
    (dict(feed_forwards=0), "feed_forwards is 0"),
    (dict(embedding_size=512), "embedding_size 512 must be less than hidden_size 512"),
    (dict(attention_input="both"), "attention_input 'both'.*shared, hidden, bottleneck"),
    (dict(norm="batch_norm"), "norm 'batch_norm'.*no_norm, layer_norm"),
    (dict(layers=0), "layers is 0"),
])
def test_impossible_mobileberts_are_refused(change, complaint):
    with pytest.raises(UserError, match=complaint):
        replace(MobileConfig(), **change)
    with pytest.raises(UserError, match="architecture 'mobilebert'.*bert or distilbert"):
        Config(architecture="mobilebert")


def test_config_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Config().layers = 3
