"""The networks. A good order to read the files is config.py, batch.py (sequences are packed without padding),
attention.py, encoder.py, heads.py. mobilebert.py has the encoder of MobileBERT.
"""
