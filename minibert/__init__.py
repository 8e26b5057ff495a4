"""minibert: small, fast BERT distillation in plain PyTorch.

The names in `__all__` are the public interface. All other names may change. The module of a public name is
imported when the name is first used. So a process that uses only `load_tokenizer` does not import torch.
"""

import importlib

__version__ = "0.1.0"

_HOME = {"load": "hub.load_save", "load_tokenizer": "data.tokenizer", "save": "hub.load_save",
         "pack": "model.batch", "Batch": "model.batch", "predict": "inference.predict",
         "embed": "inference.predict", "fast": "inference.fast_encoder", "Config": "model.config",
         "preset": "model.config", "make_student": "distill.students", "masked_batch": "data.loader",
         "distillation_loss": "distill.methods", "UserError": "common.errors"}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'minibert' has no attribute {name!r}")
    return getattr(importlib.import_module(f"minibert.{_HOME[name]}"), name)


def __dir__():
    return sorted(__all__)
