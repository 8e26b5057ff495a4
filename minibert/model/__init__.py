"""The networks: configurations, packed batches, attention, encoders and heads.

A good order to read the files is config.py, batch.py (sequences are packed without padding), attention.py,
encoder.py, heads.py. mobilebert.py has the encoder of MobileBERT. init.py draws the random weights of a new
model.
"""
