"""The README.md that is saved with a model."""

from minibert.hub.hf_names import CLASSES
from minibert.model.config import Config

FAMILIES = {"bert": "BERT", "distilbert": "DistilBERT", "mobilebert": "MobileBERT"}
WHAT = {
    "encoder": ("feature-extraction", "an encoder: one vector of width {D} for each token"),
    "mlm": ("fill-mask", "a masked language model"),
    "pretraining": ("fill-mask", "a masked language model with BERT's next-sentence head"),
    "classification": ("text-classification", "a classifier of texts or pairs of texts"),
    "regression": ("text-classification", "one score for a text or a pair of texts"),
    "span": ("question-answering", "an extractive question answerer: start and end logits for each token"),
}


def model_card(config: Config, head: str, form: str, parameters: int, dtype: str, pooler: bool, name: str,
               extra: str | None = None) -> str:
    """A model card:
    YAML front matter, what the model is, the caller's markdown in `extra`, and how to load it.
    """
    c = config
    task, what = WHAT["regression" if head == "classification" and c.regression else head]
    rows = {"architecture": FAMILIES[c.architecture],
            "parameters": f"{parameters:,}", "stored as": dtype, "layers": c.layers,
            "hidden size": c.hidden_size, "attention heads": c.heads,
            "feed-forward size": c.intermediate_size}
    if c.architecture == "mobilebert":
        rows |= {"bottleneck size": c.bottleneck_size, "feed-forward networks a layer": c.feed_forwards}
    rows |= {"vocabulary": f"{c.vocab_size:,}", "longest input": f"{c.max_positions} tokens",
            "activation": c.activation}
    if head == "classification" and not c.regression:
        rows["labels"] = ", ".join(c.labels)
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    library = "transformers" if form == "hf" else "minibert"
    parts = [f"---\nlibrary_name: {library}\npipeline_tag: {task}\n"
             f"tags:\n- minibert\n- {c.architecture}\n---\n\n# {name}\n\n"
             f"This model is {what.format(D=c.hidden_size)}.\n\n| | |\n|---|---|\n{table}"]
    if extra:
        parts.append(extra.strip() + "\n")
    parts.append("## How to load it\n\nWith minibert:\n\n```python\nimport minibert\n\n"
                 "model = minibert.load(\"FOLDER\")\ntokenizer = minibert.load_tokenizer(\"FOLDER\")\n"
                 "ids, segments = tokenizer.encode([\"A text.\", \"Another, longer text.\"])\n"
                 "output = model(minibert.pack(ids, segments))\n```\n")
    if form == "hf":
        bare = head == "encoder" and not pooler and (
            c.architecture == "bert" or c.architecture == "mobilebert" and c.tanh_pooler)
        parts.append("With transformers:\n\n```python\nimport transformers\n\n"
                     f"model = transformers.{CLASSES[c.architecture][head]}.from_pretrained(\"FOLDER\""
                     f"{', add_pooling_layer=False' if bare else ''})\n"
                     "tokenizer = transformers.AutoTokenizer.from_pretrained(\"FOLDER\")\n```\n")
        if bare:
            parts.append("The model has no pooler: without `add_pooling_layer=False`, transformers starts "
                         "a new one, and `pooler_output` means nothing.\n")
        if c.architecture == "mobilebert":
            parts.append("There, the last token of a sequence reads the padding behind it: outputs of a "
                         "padded batch differ from those of its sequences one by one, which are "
                         "minibert's.\n")
    return "\n".join(parts)
