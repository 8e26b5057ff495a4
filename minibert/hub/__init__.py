"""Model files in and out: loading, saving, and the names that others use.

Read load_save.py, then hf_names.py and hf_config.py (the tables between our names and those of Hugging Face),
then weight_files.py.
"""
