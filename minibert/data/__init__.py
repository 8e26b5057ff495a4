"""Makes training batches from text. The files of this package tokenise text, store the token ids in a folder
(a "prepared corpus"), mask tokens, and make the batches of an optimiser step.

A good order to read the files is tokenizer.py, text.py, prepare.py, corpus_writer.py, corpus.py, masking.py,
loader.py.
"""
