"""Loads and saves model files, and translates between the names of minibert and the names of Hugging Face.

Read load_save.py first. hf_names.py and hf_config.py translate names and configs, and weight_files.py reads
and writes tensors.
"""
