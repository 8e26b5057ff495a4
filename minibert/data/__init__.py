"""From text to batches: tokenising, prepared corpora, masking, the batches of a step.

Read tokenizer.py and text.py, then prepare.py, shards.py and corpus.py, then masking.py and loader.py.
"""
