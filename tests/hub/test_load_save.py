"""Tests of `load` and `save`: names, precisions, layouts, tensors that are left out, and damaged folders."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import minibert
from minibert.hub import load_save
from minibert.data.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer
from minibert.hub.hf_names import MODULES, from_hf, to_hf
from minibert.hub.load_save import head_of, load, load_config, save
from minibert.model.config import Config, MobileConfig
from minibert.model.encoder import Encoder
from minibert.model.init import init_weights
from minibert.model.heads import Classifier, MaskedLM, PreTraining, Span, build_encoder

TINY = dict(vocab_size=40, hidden_size=16, layers=2, heads=2, intermediate_size=24, max_positions=20)
BERT = Config(**TINY)
DISTILBERT = Config(architecture="distilbert", segments=0, classifier_dropout=0.2, **TINY)
MOBILEBERT = MobileConfig(**TINY, embedding_size=6, bottleneck_size=8, feed_forwards=3)
KINDS = [(config, kind) for config in (BERT, DISTILBERT, MOBILEBERT)
         for kind in (build_encoder, MaskedLM, PreTraining, Classifier, Span)
         if (config, kind) != (DISTILBERT, PreTraining)]


@pytest.fixture
def tokenizer():
    """A vocabulary of 40 pieces."""
    pieces = [*SPECIAL_TOKENS, *"abcdefghijklmnopq", *(f"##{c}" for c in "abcdefghijklmnopqr")]
    return Tokenizer({piece: i for i, piece in enumerate(pieces)})


def random_model(kind, config, seed=0, **options):
    """A model with every tensor random."""
    model = init_weights(kind(config, **options), torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return model


def change(folder, **config):
    """Changes fields of a saved config.json; None removes one."""
    raw = json.loads((folder / "config.json").read_text()) | config
    raw = {key: value for key, value in raw.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(raw))


def retensor(folder, function):
    """Replaces the tensors of a saved folder by the result of `function`."""
    tensors = function(load_file(folder / "model.safetensors"))
    save_file({name: t.clone() for name, t in tensors.items()}, folder / "model.safetensors")


def same(a, b):
    """Whether two models have the same class and the same tensors, equal to the bit."""
    x, y = a.state_dict(), b.state_dict()
    return type(a) is type(b) and x.keys() == y.keys() and all(
        x[name].dtype == y[name].dtype and torch.equal(x[name], y[name]) for name in x)


def fails(*args, **options) -> str:
    """The message of the `UserError` that `load` raises."""
    with pytest.raises(minibert.UserError) as caught:
        load(*args, **options)
    return str(caught.value)


# --- what is saved is loaded ---

@pytest.mark.parametrize("config, kind", KINDS)
def test_round_trip(config, kind, tmp_path):
    model = random_model(kind, config)
    save(model, tmp_path)
    loaded = load(tmp_path)
    assert same(loaded, model) and not loaded.training
    assert loaded.config == model.config == load_config(tmp_path)
    assert all(p.requires_grad and not p.is_meta for p in loaded.parameters())


def test_config_fields_survive(tmp_path):
    config = Config(**TINY | dict(heads=4), segments=3, activation="gelu_tanh", norm_eps=1e-7, dropout=0.2,
                    classifier_dropout=0.3, initializer_range=0.05, pad_id=3, labels=("yes", "no", "maybe"))
    save(random_model(Classifier, config), tmp_path)
    assert load(tmp_path).config == config


def test_a_regression_stays_one(tmp_path):
    config = Config(**TINY, labels=("score",), problem_type="regression")
    save(random_model(Classifier, config), tmp_path)
    model = load(tmp_path)
    assert model.config == config and model.classifier.out_features == 1


def test_a_loaded_model_is_its_own(tmp_path):
    """The model is not a view of the file. Writing over the file later does not change the model."""
    model = random_model(MaskedLM, BERT)
    save(model, tmp_path)
    loaded = load(tmp_path)
    with open(tmp_path / "model.safetensors", "rb+") as file:
        file.write(bytes((tmp_path / "model.safetensors").stat().st_size))
    assert same(loaded, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_stored_and_come_back_as_fp32(dtype, tmp_path):
    model = random_model(MaskedLM, BERT)
    save(model, tmp_path, dtype=dtype)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    assert (json.loads((tmp_path / "config.json").read_text())["torch_dtype"]
            == str(dtype).removeprefix("torch."))
    assert same(load(tmp_path), model.to(dtype).float())


def test_hf_names_and_no_tied_copies(tmp_path):
    save(random_model(PreTraining, BERT), tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "bert.embeddings.LayerNorm.weight" in names and "cls.predictions.bias" in names
    assert not [name for name in names if "decoder" in name]
    save(random_model(Encoder, BERT), tmp_path)
    assert "embeddings.LayerNorm.weight" in load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("architecture", MODULES)
def test_the_table_reads_both_ways(architecture):
    for module in MODULES[architecture]:
        name = f"{module.format(11, 2)}.weight"
        assert from_hf(to_hf(name, architecture), architecture) == name


def test_the_model_card(tmp_path, tokenizer):
    save(random_model(Classifier, BERT), tmp_path / "sentiment", tokenizer, card="## Results\n\nGood.")
    card = (tmp_path / "sentiment" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-classification\n")
    assert "# sentiment" in card and "## Results\n\nGood." in card and "BertForSequenceClassification" in card
    assert "LABEL_0, LABEL_1" in card


def test_the_tokenizer_is_saved_and_loaded_by_the_public_names(tmp_path, tokenizer):
    minibert.save(random_model(Encoder, BERT), tmp_path, tokenizer)
    assert (load_tokenizer(tmp_path).sha256 == minibert.load_tokenizer(str(tmp_path)).sha256
            == tokenizer.sha256)


def test_saved_files_are_readable_as_any_other(tmp_path):
    save(random_model(Encoder, BERT), tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_a_compiled_model_is_saved_as_it_is(tmp_path):
    model = random_model(MaskedLM, BERT)
    save(torch.compile(model, backend="eager"), tmp_path)
    assert same(load(tmp_path), model)


def test_shapes_without_counterpart_are_for_minibert_alone(tmp_path):
    for config, why in ((Config(**TINY, segments=0), "token types"),
                        (Config(architecture="distilbert", segments=0, norm_eps=1e-5, **TINY), "norm_eps"),
                        (Config(**TINY, labels=("a",), problem_type="single_label_classification"),
                         "with one label")):
        with pytest.warns(UserWarning, match=f"does not support this model.*{why}.*only minibert loads it"):
            save(random_model(Classifier, config), tmp_path / why)
        assert load(tmp_path / why).config == config
        raw = json.loads((tmp_path / why / "config.json").read_text())
        assert raw["model_type"] == f"minibert-{config.architecture}"
        assert "With transformers" not in (tmp_path / why / "README.md").read_text()


@pytest.mark.parametrize("breaks", ["write_tensors", "model_card", "os.fsync", "os.replace"])
def test_an_interrupted_save_never_loads_wrong(breaks, tmp_path, monkeypatch):
    old, new = random_model(MaskedLM, BERT, seed=1), random_model(Span, BERT, seed=2)
    save(old, tmp_path)
    calls = []

    def crash(*args, **options):
        calls.append(args)
        if len(calls) == 2 or breaks in ("write_tensors", "model_card"):
            raise KeyboardInterrupt
        return original(*args, **options)

    target = f"minibert.hub.load_save.{breaks}"
    original = getattr(load_save.os, breaks.removeprefix("os.")) if "os." in breaks else None
    monkeypatch.setattr(target, crash)
    with pytest.raises(KeyboardInterrupt):
        save(new, tmp_path)
    monkeypatch.undo()
    if breaks == "os.replace":  # half of the new files are in place
        assert "holds no config.json" in fails(tmp_path)
    else:
        assert same(load(tmp_path), old)
    assert not list(tmp_path.glob(".saving*"))
    save(new, tmp_path)
    assert same(load(tmp_path), new)


# --- other heads ---

@pytest.mark.parametrize("config, kind", KINDS)
def test_every_checkpoint_gives_its_encoder(config, kind, tmp_path):
    model = random_model(kind, config)
    save(model, tmp_path)
    encoder = load(tmp_path, "encoder")
    assert isinstance(encoder, Encoder) and same(encoder, model if kind is build_encoder else model.encoder)


def test_a_language_model_of_a_pretraining_checkpoint(tmp_path):
    model = random_model(PreTraining, BERT)
    save(model, tmp_path)
    change(tmp_path, architectures=["BertForMaskedLM"])  # as bert-base-uncased says of itself
    assert same(load(tmp_path).mlm, model.mlm) and type(load(tmp_path)) is MaskedLM
    assert same(load(tmp_path, "pretraining"), model)


@pytest.mark.parametrize("config", [BERT, DISTILBERT])
def test_new_heads_start_with_a_warning(config, tmp_path):
    model = random_model(MaskedLM, config)
    save(model, tmp_path)
    names = "encoder.pooler.weight" if config is BERT else "pre_classifier.weight"
    with pytest.warns(UserWarning, match=f"{names}.*classifier.weight"):
        classifier = load(tmp_path, "classification", labels=("a", "b", "c"), dropout=0.0)
    assert classifier.config.labels == ("a", "b", "c") and classifier.config.dropout == 0
    assert classifier.classifier.weight.shape == (3, 16)
    assert 0.01 < classifier.classifier.weight.std() < 0.03 and classifier.classifier.bias.abs().max() == 0
    assert torch.equal(classifier.encoder.word.weight, model.encoder.word.weight)
    with pytest.warns(UserWarning, match="get new weights: span.weight, span.bias$"):
        load(tmp_path, "span")


def test_new_labels_are_a_new_classifier(tmp_path):
    save(random_model(Classifier, BERT), tmp_path)
    with pytest.warns(UserWarning, match="get new weights: classifier.weight, classifier.bias$"):
        model = load(tmp_path, labels=("one", "two", "three"))
    assert model.classifier.out_features == 3
    with pytest.warns(UserWarning, match="classifier.bias"):
        assert load(tmp_path, labels=("score",)).classifier.out_features == 1


def test_heads_that_cannot_start_anew(tmp_path):
    save(random_model(Encoder, BERT, pooler=True), tmp_path)
    said = fails(tmp_path, "mlm")
    assert "no mlm head: cls.predictions.bias is missing" in said
    assert said.endswith(f"; train.py --method mlm --student {tmp_path} trains one")
    assert "no pretraining head" in fails(tmp_path, "pretraining")
    assert "'speech' is not known" in fails(tmp_path, "speech")
    save(random_model(MaskedLM, DISTILBERT), tmp_path)
    assert "distilbert, which has no pretraining head" in fails(tmp_path, "pretraining")


def test_an_unknown_head_leaves_the_encoder_and_its_classifier_is_not_ours(tmp_path):
    model = random_model(Classifier, BERT)
    save(model, tmp_path)
    change(tmp_path, architectures=["BertForMultipleChoice"])
    assert "is a BertForMultipleChoice" in fails(tmp_path)
    assert same(load(tmp_path, "encoder"), model.encoder)
    with pytest.warns(UserWarning, match="get new weights: classifier.weight, classifier.bias$"):
        load(tmp_path, "classification")


# --- what Hugging Face folders look like ---

@pytest.mark.parametrize("config, kind", KINDS)
def test_names_of_other_times(config, kind, tmp_path):
    """Old forms load too: gamma and beta, buffers, tied tensors stored twice, no prefix, a short TinyBERT
    config.
    """
    model = random_model(kind, config)
    save(model, tmp_path)
    prefix = f"{config.architecture}."

    def older(tensors):
        bare = kind is build_encoder
        tensors = {name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t
                   for name, t in tensors.items()}
        tensors[("" if bare else prefix) + "embeddings.position_ids"] = torch.arange(20)[None]
        tensors["fit_dense.weight"], tensors["fit_dense.bias"] = torch.zeros(768, 16), torch.zeros(768)
        tensors["fit_denses.0.weight"] = torch.zeros(768, 16)
        if "cls.predictions.bias" in tensors:
            tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
            tensors["cls.predictions.decoder.weight"] = tensors[f"{prefix}embeddings.word_embeddings.weight"]
        if "vocab_projector.bias" in tensors:
            tensors["vocab_projector.weight"] = tensors["distilbert.embeddings.word_embeddings.weight"]
        return tensors

    retensor(tmp_path, older)
    change(tmp_path, architectures=None, emb_size=16, cell={})
    if config is not MOBILEBERT:  # which has never been without
        change(tmp_path, model_type=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TinyBERT's classifier; see the next test
        assert same(load(tmp_path), model)
    retensor(tmp_path, lambda tensors: {name.removeprefix(prefix): t for name, t in tensors.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(load(tmp_path), model)


def test_a_tinybert_classifier_warns_of_its_relu(tmp_path):
    save(random_model(Classifier, BERT), tmp_path)
    retensor(tmp_path, lambda tensors: tensors | {"fit_dense.bias": torch.zeros(768)})
    change(tmp_path, architectures=["TinyBertForSequenceClassification"])
    with pytest.warns(UserWarning, match="ReLU"):
        load(tmp_path)
    load(tmp_path, "encoder")


def test_a_tied_tensor_may_be_stored_under_its_second_name_only(tmp_path):
    model = random_model(MaskedLM, BERT)
    save(model, tmp_path)
    names = {"cls.predictions.bias": "cls.predictions.decoder.bias",
             "bert.embeddings.word_embeddings.weight": "cls.predictions.decoder.weight"}
    retensor(tmp_path, lambda tensors: {names.get(name, name): t for name, t in tensors.items()})
    assert same(load(tmp_path), model)


def test_a_tied_tensor_that_differs(tmp_path):
    model = random_model(MaskedLM, BERT)
    save(model, tmp_path)
    retensor(tmp_path, lambda tensors: tensors | {"cls.predictions.decoder.weight": torch.zeros(40, 16)})
    message = fails(tmp_path)
    assert "cls.predictions.decoder.weight differs from bert.embeddings.word_embeddings.weight" in message
    assert same(load(tmp_path, "encoder"), model.encoder)  # which has no use for it


def shard(folder, tensors):
    """Splits the tensors over two files with an index."""
    names, files = sorted(tensors), ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map, index


def test_shards(tmp_path):
    model = random_model(MaskedLM, BERT)
    save(model, tmp_path)
    weight_map, index = shard(tmp_path, load_file(tmp_path / "model.safetensors"))
    assert same(load(tmp_path), model)

    name = next(iter(weight_map))
    for file in ("../model-00001-of-00002.safetensors", str(tmp_path / "model-00001-of-00002.safetensors")):
        index.write_text(json.dumps({"weight_map": weight_map | {name: file}}))
        assert "not the name of a file in the same folder" in fails(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map | {name: "model-00002-of-00002.safetensors"}}))
    assert f"lacks {name}" in fails(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map | {name: "model-00003.safetensors"}}))
    assert "holds no model-00003.safetensors" in fails(tmp_path)
    index.write_text(json.dumps({"weight_map": [1]}))
    assert "weight_map is not an object" in fails(tmp_path)


# --- what is wrong with a folder ---

def test_one_message_names_every_difference(tmp_path):
    save(random_model(MaskedLM, BERT), tmp_path)

    def damage(tensors):
        del tensors["bert.embeddings.LayerNorm.bias"], tensors["cls.predictions.transform.dense.weight"]
        tensors["bert.encoder.layer.2.output.dense.bias"] = torch.zeros(16)
        tensors["surprise"] = torch.zeros(1)
        tensors["bert.encoder.layer.0.output.dense.weight"] = torch.zeros(16, 23)
        tensors["cls.predictions.bias"] = torch.zeros(40, dtype=torch.int8)
        return tensors

    retensor(tmp_path, damage)
    message = fails(tmp_path)
    assert message.startswith(f"the tensors in {tmp_path} are not those of a BertForMaskedLM")
    assert "missing: bert.embeddings.LayerNorm.bias, cls.predictions.transform.dense.weight;" in message
    assert "unexpected: bert.encoder.layer.2.output.dense.bias, surprise;" in message
    assert ("bert.encoder.layer.0.output.dense.weight ((16, 23) in the file, "
            "(16, 24) by config.json)") in message
    assert "cls.predictions.bias (torch.int8, not floating point)" in message


def test_our_own_names_mean_nothing_in_a_hugging_face_file(tmp_path):
    save(random_model(MaskedLM, BERT), tmp_path)
    retensor(tmp_path, lambda t: {("mlm.bias" if n == "cls.predictions.bias" else n): x
                                  for n, x in t.items()})
    assert "no mlm head" in fails(tmp_path)
    assert "unexpected: mlm.bias" in fails(tmp_path, "encoder")


def test_a_tensor_with_two_names(tmp_path):
    save(random_model(Span, BERT), tmp_path)
    retensor(tmp_path, lambda t: t | {"embeddings.LayerNorm.gamma": torch.ones(16)})
    assert "two tensors for bert.embeddings.LayerNorm.weight" in fails(tmp_path)


def test_a_head_that_is_promised_and_missing_is_an_error(tmp_path):
    save(random_model(Encoder, BERT, pooler=True), tmp_path)
    change(tmp_path, architectures=["BertForSequenceClassification"])
    assert "missing: classifier.bias, classifier.weight" in fails(tmp_path)
    assert "missing: classifier.bias, classifier.weight" in fails(tmp_path, "classification")


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_a_damaged_file(size, tmp_path):
    save(random_model(Encoder, BERT), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert f"{path} is damaged" in fails(tmp_path)


def test_folders_that_hold_no_model(tmp_path):
    assert "holds no config.json" in fails(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "there is no model.safetensors" in fails(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert f"python weights/convert.py {tmp_path} TARGET" in fails(tmp_path)
    assert "is neither a folder" in fails(tmp_path / "config.json")
    assert "is neither a folder" in fails("../nowhere")


def test_the_folder_of_a_run_names_that_of_its_model(tmp_path):
    save(random_model(MaskedLM, BERT), tmp_path / "model")
    (tmp_path / "config.json").write_text('{"options": {}}')
    assert "model_type is None" in fails(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    assert fails(tmp_path) == f"{tmp_path} is the folder of a run; its model is {tmp_path / 'model'}"


@pytest.mark.parametrize("wrong, why", [
    (dict(model_type="roberta"), "model_type is 'roberta'"),
    (dict(model_type=["bert"]), "model_type is"),
    (dict(hidden_size="16"), "hidden_size is '16', where int is expected"),
    (dict(hidden_size=True), "hidden_size is True"),
    (dict(hidden_size=15), "hidden_size 15 is not a multiple of heads 2"),
    (dict(num_hidden_layers=10**9), "num_hidden_layers is 1000000000, but must be between"),
    (dict(vocab_size=-1), "vocab_size is -1"),
    (dict(num_attention_heads=0), "heads is 0"),
    (dict(layer_norm_eps="tiny"), "layer_norm_eps is 'tiny'"),
    (dict(layer_norm_eps=float("nan")), "layer_norm_eps is nan"),
    (dict(hidden_dropout_prob=1), "dropout is 1.0"),
    (dict(hidden_act="swish"), "hidden_act is 'swish'"),
    (dict(architectures="BertModel"), "architectures is not a list"),
    (dict(is_decoder=True), "decoder"),
    (dict(position_embedding_type="relative_key"), "relative_key"),
    (dict(id2label={"0": "a", "2": "b"}), "id2label"),
    (dict(id2label=[]), "id2label"),
    (dict(id2label=None, num_labels=0), "num_labels"),
    (dict(problem_type="regression"), "regression"),
    (dict(problem_type="binary"), "problem_type is 'binary', and must be one of regression"),
    (dict(id2label={"0": "a", "1": "a"}), "two classes are both named 'a'"),
    (dict(id2label={"0": "a", "1": "b"}, num_labels=3), "num_labels is 3, but id2label names 2 classes"),
    (dict(pruned_heads={"0": [1]}), "pruned_heads"),
])
def test_a_wrong_config_names_the_field(wrong, why, tmp_path):
    save(random_model(Encoder, BERT), tmp_path)
    change(tmp_path, **wrong)
    message = fails(tmp_path)
    assert message.startswith(f"{tmp_path / 'config.json'}: ") and why in message


def test_an_absent_config_field_has_hugging_faces_default(tmp_path):
    save(random_model(Encoder, BERT), tmp_path)
    change(tmp_path, hidden_act=None, layer_norm_eps=None, hidden_dropout_prob=0.3, classifier_dropout=None,
           id2label=None, num_labels=4)
    config = load_config(tmp_path)
    assert (config.activation, config.norm_eps, config.dropout, config.classifier_dropout) == (
        "gelu", 1e-12, 0.3, 0.3)
    assert config.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")


# --- what the config means to others ---

CROSS = dict(labels=("LABEL_0",))  # one logit and no problem_type: a pipeline takes its sigmoid


@pytest.mark.parametrize("stated", [None, "regression", "single_label_classification",
                                    "multi_label_classification"])
def test_problem_type_is_kept_as_found(stated, tmp_path):
    labels = ("a",) if stated in (None, "regression") else ("a", "b")
    save(random_model(Classifier, Config(**TINY, labels=labels)), tmp_path / "a")
    change(tmp_path / "a", problem_type=stated)
    model = load(tmp_path / "a")
    assert model.config.problem_type == stated and model.config.regression == (len(labels) == 1)
    save(model, tmp_path / "b")
    assert load(tmp_path / "b").config == model.config
    save(load(tmp_path / "b"), tmp_path / "c")
    assert json.loads((tmp_path / "c" / "config.json").read_text()).get("problem_type") == stated


def test_one_label_of_many_possible_is_no_score(tmp_path):
    config = Config(**TINY, labels=("toxic",), problem_type="multi_label_classification")
    save(random_model(Classifier, config), tmp_path)
    assert load(tmp_path).config == config and not config.regression


OTHERS = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
          "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"},
          "finetuning_task": "mnli", "use_cache": False, "mine": [1, {"a": None}]}


def test_settings_for_other_readers_are_carried_over(tmp_path):
    save(random_model(Classifier, BERT), tmp_path / "a")
    change(tmp_path / "a", **OTHERS, attention_probs_dropout_prob=0.1, hidden_act="gelu_python",
           _name_or_path="x", transformers_version="4.1", auto_map={"AutoModel": "mine.Model"}, num_labels=2)
    save(load(tmp_path / "a"), tmp_path / "b")
    save(load(tmp_path / "b"), tmp_path / "c")
    raw = json.loads((tmp_path / "c" / "config.json").read_text())
    assert OTHERS.items() <= raw.items() and raw["attention_probs_dropout_prob"] == 0.1
    assert raw["hidden_act"] == "gelu_python"
    assert not {"_name_or_path", "transformers_version", "auto_map", "num_labels"} & raw.keys()
    with pytest.warns(UserWarning, match="get new weights"):
        save(load(tmp_path / "a", labels=("x", "y", "z"), attention_dropout=0.2), tmp_path / "d")
    raw = json.loads((tmp_path / "d" / "config.json").read_text())  # they were about another classifier
    assert not OTHERS.keys() & raw.keys() and raw["attention_probs_dropout_prob"] == 0.2
    save(load(tmp_path / "a", attention_dropout=0.2), tmp_path / "e")
    raw = json.loads((tmp_path / "e" / "config.json").read_text())
    assert OTHERS.items() <= raw.items() and raw["attention_probs_dropout_prob"] == 0.2
    save(load(tmp_path / "a", "encoder"), tmp_path / "e")
    assert not OTHERS.keys() & json.loads((tmp_path / "e" / "config.json").read_text()).keys()


@pytest.mark.parametrize("config, key", [(Config(**TINY), "attention_probs_dropout_prob"),
                                         (Config(**TINY, architecture="distilbert", segments=0),
                                          "attention_dropout")])
def test_attention_dropout_of_a_file_is_not_read(tmp_path, config, key):
    save(random_model(MaskedLM, config), tmp_path)
    change(tmp_path, **{key: 0.1})
    assert load_config(tmp_path).attention_dropout == 0 and load(tmp_path).config.attention_dropout == 0


def test_labels_are_in_the_order_of_their_numbers(tmp_path):
    """Sorted as text, "10" would come before "2"."""
    save(random_model(Classifier, Config(**TINY, labels=tuple("abcdefghijkl"))), tmp_path)
    assert load_config(tmp_path).labels == tuple("abcdefghijkl")


def test_labels_as_found(tmp_path):
    save(random_model(Classifier, Config(**TINY, labels=("0", "1"))), tmp_path / "a")
    change(tmp_path / "a", id2label={"1": 1, "0": 0}, label2id={"0": "0", "1": "1"})
    save(load(tmp_path / "a"), tmp_path / "b")
    raw = json.loads((tmp_path / "b" / "config.json").read_text())
    assert load(tmp_path / "b").config.labels == ("0", "1")
    assert raw["id2label"] == {"1": 1, "0": 0} and raw["label2id"] == {"0": "0", "1": "1"}
    change(tmp_path / "a", id2label={"0": "no", "1": "yes"}, label2id={"yes": 0, "no": 1})
    assert load_config(tmp_path / "a").labels == ("no", "yes")


@pytest.mark.parametrize("act, ours", [("gelu_python", "gelu"), ("gelu_fast", "gelu_tanh"),
                                       ("gelu_accurate", "gelu_tanh"), ("gelu_new", "gelu_tanh")])
def test_names_of_activations(act, ours, tmp_path):
    save(random_model(Encoder, BERT), tmp_path)
    change(tmp_path, hidden_act=act)
    assert load_config(tmp_path).activation == ours


def test_a_distilbert_config_with_berts_names(tmp_path):
    model = random_model(MaskedLM, DISTILBERT)
    save(model, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    names = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"}
    change(tmp_path, **{new: raw[old] for old, new in names.items()}, **dict.fromkeys(names))
    assert same(load(tmp_path), model)
    change(tmp_path, model_type=None)
    assert same(load(tmp_path), model)
    save(load(tmp_path), tmp_path)
    assert not set(names.values()) & json.loads((tmp_path / "config.json").read_text()).keys()


def test_a_class_of_another_framework(tmp_path):
    save(random_model(Classifier, BERT), tmp_path)
    change(tmp_path, architectures=["TFBertForSequenceClassification"])
    assert isinstance(load(tmp_path), Classifier)


# --- heads that the file has and the model does not use ---

@pytest.mark.parametrize("lacks", [(), ("cls.seq_relationship.",)])
def test_a_pooler_is_kept_beside_a_language_model(lacks, tmp_path):
    """bert-base-uncased has such a pooler, and transformers 3 saved it with language models."""
    model = random_model(PreTraining, BERT)
    save(model, tmp_path / "a")
    change(tmp_path / "a", architectures=["BertForMaskedLM"])
    retensor(tmp_path / "a", lambda tensors: {n: t for n, t in tensors.items()
                                              if not n.startswith(lacks or "-")})
    save(load(tmp_path / "a"), tmp_path / "b")
    assert type(load(tmp_path / "b")) is MaskedLM
    assert same(load(tmp_path / "b", "encoder"), model.encoder)
    if not lacks:
        assert same(load(tmp_path / "b", "pretraining"), model)
    assert (load_file(tmp_path / "a" / "model.safetensors").keys()
            == load_file(tmp_path / "b" / "model.safetensors").keys())


def test_a_language_model_is_kept_beside_an_encoder(tmp_path):
    model = random_model(MaskedLM, BERT)
    save(model, tmp_path / "a")
    change(tmp_path / "a", architectures=["BertModel"])
    assert isinstance(load(tmp_path / "a"), Encoder)
    save(load(tmp_path / "a"), tmp_path / "b")
    assert same(load(tmp_path / "b"), model.encoder) and same(load(tmp_path / "b", "mlm"), model)
    change(tmp_path / "a", architectures=["BertForMaskedLM"])
    save(load(tmp_path / "a", "encoder"), tmp_path / "c")  # a part of it was asked for
    assert "no mlm head" in fails(tmp_path / "c", "mlm")


# --- transformers reads what is written here ---

AUTO = {"encoder": "AutoModel", "mlm": "AutoModelForMaskedLM", "pretraining": "AutoModelForPreTraining",
        "classification": "AutoModelForSequenceClassification", "span": "AutoModelForQuestionAnswering"}


@pytest.mark.parametrize("config, kind", KINDS)
def test_transformers_loads_it_cleanly(config, kind, tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    from parity import difference, hf_outputs, our_outputs

    pools = kind is build_encoder and config is not DISTILBERT
    model = random_model(kind, config, **({"pooler": True} if pools else {}))
    head = head_of(model)
    save(model, tmp_path, tokenizer)
    theirs, info = getattr(transformers, AUTO[head]).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert type(theirs).__name__ == json.loads((tmp_path / "config.json").read_text())["architectures"][0]

    texts = ["abc de", "f", "hi jkl mno"]
    ids, segments = tokenizer.encode(texts)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert words(texts)["input_ids"] == ids
    encoded = words("abc de", return_tensors="pt")
    assert ("token_type_ids" in encoded) == (config is not DISTILBERT)  # with which transformers 4 would fail
    theirs.eval()(**encoded)
    ours = our_outputs(model, head, ids, segments)
    padded = config is not MOBILEBERT
    assert max(difference(ours, hf_outputs(theirs.eval(), head, ids, segments, padded)).values()) < 1e-5


def test_transformers_keeps_labels_and_regression(tmp_path):
    transformers = pytest.importorskip("transformers")
    save(random_model(Classifier, Config(**TINY, labels=("no", "yes", "maybe"))), tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.id2label == {0: "no", 1: "yes", 2: "maybe"} and config.num_labels == 3
    save(random_model(Classifier, Config(**TINY, labels=("score",), problem_type="regression")), tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.problem_type == "regression" and config.num_labels == 1


@pytest.mark.parametrize("size", [dict(num_labels=10**6), dict(num_labels=10**5, hidden_size=10**6)])
def test_sizes_that_only_config_json_says_take_no_memory(size, tmp_path):
    """A new head is made only if all other tensors have the right shape."""
    save(random_model(Encoder, BERT), tmp_path)
    change(tmp_path, id2label=None, label2id=None, **size)
    said = fails(tmp_path, "classification")
    assert "num_labels" in said or "misshapen" in said


@pytest.mark.filterwarnings("ignore:.*get new weights")
def test_a_new_head_of_initializer_range_zero(tmp_path):
    save(random_model(Encoder, BERT), tmp_path)
    change(tmp_path, initializer_range=0.0)
    assert not load(tmp_path, "span").span.weight.any()


def test_a_full_disk_is_one_sentence_and_leaves_the_old_model(tmp_path, monkeypatch):
    old = random_model(MaskedLM, BERT, seed=1)
    save(old, tmp_path)

    def full(*_):  # what safetensors says on a disk that is
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    monkeypatch.setattr("minibert.hub.weight_files.save_file", full)
    with pytest.raises(minibert.UserError, match="disk is full"):
        save(random_model(Span, BERT, seed=2), tmp_path)
    assert same(load(tmp_path), old) and not list(tmp_path.glob(".saving*"))


@pytest.mark.parametrize("config", [BERT, DISTILBERT, MOBILEBERT])
@pytest.mark.parametrize("change_to, of_logits", [
    (dict(labels=("LABEL_0",)), torch.sigmoid),
    (dict(labels=("score",), problem_type="regression"), lambda x: x),
    (dict(labels=("a", "b", "c")), lambda x: x.softmax(-1)),
    (dict(labels=("a", "b", "c"), problem_type="multi_label_classification"), torch.sigmoid),
])
def test_a_pipeline_reads_the_outputs_as_they_are_meant(config, change_to, of_logits, tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    model = random_model(Classifier, replace(config, **change_to))
    save(model, tmp_path / "a", tokenizer)
    save(load(tmp_path / "a"), tmp_path / "b", load_tokenizer(tmp_path / "a"))
    text = "abc de"
    said = transformers.pipeline("text-classification", str(tmp_path / "b"), device="cpu", top_k=None)(text)
    if isinstance(said[0], list):  # of transformers 4
        said = said[0]
    scores = of_logits(torch.from_numpy(minibert.predict(model, tokenizer, [text])[0]))
    expected = dict(zip(model.config.labels, scores.tolist()))
    assert {x["label"]: x["score"] for x in said} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("activation", ["linear.Identity", "activation.Tanh", None])
def test_a_cross_encoder_stays_what_it_is(activation, tmp_path, tokenizer):
    """Its scores in sentence-transformers do not change. They use the function in its config.json or the
    sigmoid.
    """
    CrossEncoder = pytest.importorskip("sentence_transformers").CrossEncoder
    model = random_model(Classifier, Config(**TINY, **CROSS))
    save(model, tmp_path / "a", tokenizer)
    path = f"torch.nn.modules.{activation}"
    if activation == "linear.Identity":
        change(tmp_path / "a", sbert_ce_default_activation_function=path)
    elif activation:
        change(tmp_path / "a", sentence_transformers={"activation_fn": path})
    save(load(tmp_path / "a"), tmp_path / "b", load_tokenizer(tmp_path / "a"))
    functions = {"linear.Identity": torch.clone, "activation.Tanh": torch.tanh, None: torch.sigmoid}
    pairs = [("abc", "de"), ("f", "abc de")]
    scores = torch.from_numpy(minibert.predict(model, tokenizer, *map(list, zip(*pairs))))
    expected = functions[activation](scores)[:, 0]
    for folder in ("a", "b"):
        found = CrossEncoder(str(tmp_path / folder), device="cpu").predict(pairs)
        assert found == pytest.approx(expected.numpy(), abs=1e-5)
