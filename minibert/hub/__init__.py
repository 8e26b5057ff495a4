"""Loads and saves models in Hugging Face's format, exports them to ONNX, and makes smaller models.

Read load_save.py first. hf_names.py has the names of tensors and config fields, in minibert and in Hugging
Face's files. hf_config.py converts a config.json into a `Config`, and back. weight_files.py reads and writes
tensors.
"""
