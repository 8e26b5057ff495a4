"""The networks: configurations, packed batches, attention, the encoders, the heads.

Read config.py, then batch.py (how sequences are packed without padding), attention.py, encoder.py, heads.py.
mobilebert.py has an encoder with another block. init.py draws the weights of a new model.
"""
