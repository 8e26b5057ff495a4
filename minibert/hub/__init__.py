"""Loads and saves model files, and translates between our names and Hugging Face's names.

Read load_save.py first. hf_names.py and hf_config.py translate names and configs, and weight_files.py reads
and writes tensors.
"""
