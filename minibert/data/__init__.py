"""Makes batches from text: tokenising, prepared corpora, masking, and the batches of a step.

A good order to read the files is tokenizer.py, text.py, prepare.py, corpus_writer.py, corpus.py, masking.py,
loader.py.
"""
