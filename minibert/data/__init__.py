"""Makes training batches from text: tokenises text, stores the token ids in a folder (a "prepared corpus"),
masks tokens, and makes the batches of an optimiser step.

A good order to read the files is tokenizer.py, text.py, prepare.py, corpus_writer.py, corpus.py, masking.py,
loader.py.
"""
