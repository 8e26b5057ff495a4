"""Writes the model card, the README.md that is saved with a model."""

from torch import nn

from minibert.hub.hf_config import difference
from minibert.hub.hf_names import CLASSES

FAMILIES = {"bert": "BERT", "distilbert": "DistilBERT", "mobilebert": "MobileBERT"}
WHAT = {
    "encoder": ("feature-extraction", "an encoder: one vector of width {D} for each token"),
    "mlm": ("fill-mask", "a masked language model"),
    "pretraining": ("fill-mask", "a masked language model with BERT's next-sentence head"),
    "classification": ("text-classification", "a classifier of texts or pairs of texts"),
    "regression": ("text-classification", "a regression model: one score for a text or a pair of texts"),
    "multi_label_classification": (
        "text-classification", "a classifier of texts or pairs of texts that gives a probability for each "
        "label, the sigmoid of its logit"),
    "sentences": ("sentence-similarity", "a sentence encoder: one vector for each text"),
    "span": ("question-answering", "an extractive question answerer: start and end logits for each token"),
}


def model_card(model: nn.Module, head: str, parameters: int, dtype: str, name: str,
               extra: str | None = None) -> str:
    """Returns the text of a model card with the heading `name`. `parameters` is the number of the stored
    weights, and `dtype` their precision. The markdown text `extra` comes after the table of sizes.
    """
    c = model.config
    sentences = getattr(model, "sentences", None)
    sentences = sentences is not None and not sentences.refused
    kind = "regression" if c.regression else c.problem_type
    task, what = WHAT["sentences" if sentences else
                      kind if head == "classification" and kind in WHAT else head]
    rows = {"architecture": FAMILIES[c.architecture],
            "parameters": f"{parameters:,}", "stored as": dtype, "layers": c.layers,
            "hidden size": c.hidden_size, "attention heads": c.heads,
            "feed-forward size": c.intermediate_size}
    if c.architecture == "mobilebert":
        rows |= {"bottleneck size": c.bottleneck_size, "feed-forward networks per layer": c.feed_forwards}
    rows |= {"vocabulary": f"{c.vocab_size:,}", "longest input": f"{c.max_positions} tokens",
            "activation": c.activation}
    if head == "classification" and not c.regression:
        rows["labels"] = ", ".join(c.labels)
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    alone = difference(c)  # "", or the reason why only minibert loads the model
    library = "minibert" if alone else "sentence-transformers" if sentences else "transformers"
    parts = [f"---\nlibrary_name: {library}\npipeline_tag: {task}\n"
             f"tags:\n- minibert\n- {c.architecture}\n---\n\n# {name}\n\n"
             f"This model is {what.format(D=c.hidden_size)}.\n\n| | |\n|---|---|\n{table}",
             *([extra.strip() + "\n"] if extra else [])]
    texts = "[\"A text.\", \"Another, longer text.\"]"
    use = (f"vectors = minibert.embed(model, tokenizer, {texts})\n" if sentences else
           f"ids, segments = tokenizer.encode({texts})\noutput = model(minibert.pack(ids, segments))\n")
    parts.append("## How to load it\n\nWith minibert:\n\n```python\nimport minibert\n\n"
                 "model = minibert.load(\"FOLDER\")\ntokenizer = minibert.load_tokenizer(\"FOLDER\")\n"
                 f"{use}```\n")
    if sentences and not alone:
        parts.append("With sentence-transformers:\n\n```python\nimport sentence_transformers\n\n"
                     "model = sentence_transformers.SentenceTransformer(\"FOLDER\")\n"
                     f"vectors = model.encode({texts})\n```\n")
    elif not alone:
        bare = head == "encoder" and model.pooler is None and (
            c.architecture == "bert" or c.architecture == "mobilebert" and c.tanh_pooler)
        parts.append("With transformers:\n\n```python\nimport transformers\n\n"
                     f"model = transformers.{CLASSES[c.architecture][head]}.from_pretrained(\"FOLDER\""
                     f"{', add_pooling_layer=False' if bare else ''})\n"
                     "tokenizer = transformers.AutoTokenizer.from_pretrained(\"FOLDER\")\n```\n")
        if bare:
            parts.append("The model has no pooler. Without `add_pooling_layer=False`, transformers adds a "
                         "pooler with random weights, and its `pooler_output` has no meaning.\n")
        if c.architecture == "mobilebert":
            parts.append("In transformers, the last token of a sequence reads the padding after it. So the "
                         "outputs of a padded batch differ from the outputs of each sequence alone. "
                         "minibert gives the outputs of each sequence alone.\n")
    return "\n".join(parts)
