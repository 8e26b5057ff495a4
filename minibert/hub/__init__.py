"""Loads and saves model files. Read load_save.py first. hf_names.py and hf_config.py translate between the
names of minibert and the names of Hugging Face. weight_files.py reads and writes tensors.
"""
