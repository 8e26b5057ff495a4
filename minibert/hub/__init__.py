"""Loads and saves model files. Read load_save.py first. hf_names.py has the names of tensors and config
fields, in minibert and in Hugging Face's files. hf_config.py converts config.json. weight_files.py reads and
writes tensors.
"""
