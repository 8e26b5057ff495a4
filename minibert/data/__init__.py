"""Makes training batches from text. A good order to read the files is tokenizer.py, text.py, prepare.py,
corpus_writer.py, corpus.py, masking.py, loader.py.
"""
