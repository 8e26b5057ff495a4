"""Records what transformers makes of tiny random models, for tests that run without it (test_golden in
tests/test_parity.py). Needed again only for another architecture or head.

    PYTHONPATH=. python tests/golden/record.py [NAME ...]

Each folder beside this file is then a model as transformers saves it, and expected.safetensors, with the
batch, the outputs, all hidden states and the gradient of every parameter, under Hugging Face's names.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from parity import gradients, hf_outputs, random_batch, randomise  # noqa: E402

HERE = Path(__file__).resolve().parent
LENGTHS = [5, 1, 8, 5]
MODELS = {
    "bert": ("pretraining", transformers.BertForPreTraining(transformers.BertConfig(
        vocab_size=30, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
        max_position_embeddings=10))),
    "distilbert": ("classification", transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(vocab_size=30, dim=12, n_layers=2, n_heads=2, hidden_dim=20,
                                      max_position_embeddings=10, num_labels=3))),
    "mobilebert": ("pretraining", transformers.MobileBertForPreTraining(transformers.MobileBertConfig(
        vocab_size=30, hidden_size=14, num_hidden_layers=2, num_attention_heads=2, intermediate_size=10,
        max_position_embeddings=10, embedding_size=4, intra_bottleneck_size=6, num_feedforward_networks=2,
        classifier_activation=True))),
}

if __name__ == "__main__":
    for name in sys.argv[1:] or MODELS:
        head, model = MODELS[name]
        randomise(model.eval(), seed=1)
        model.save_pretrained(HERE / name)
        ids, segments = random_batch(30, model.config.to_dict().get("type_vocab_size", 0), LENGTHS)
        outputs = hf_outputs(model, head, ids, segments, padded=name != "mobilebert")
        recorded = {"ids": torch.tensor(sum(ids, [])), "segments": torch.tensor(sum(segments, [])),
                    "lengths": torch.tensor(LENGTHS)}
        recorded |= {f"output {key}": value.detach() for key, value in outputs.items()}
        recorded |= {f"gradient {key}": value for key, value in gradients(model, outputs).items()}
        save_file(recorded, HERE / name / "expected.safetensors",
                  metadata={"transformers": transformers.__version__, "torch": torch.__version__})
