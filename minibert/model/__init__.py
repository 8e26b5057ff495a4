"""The models. A good order to read the files is config.py, batch.py (batches have no padding), attention.py,
encoder.py, heads.py. mobilebert.py has the encoder of MobileBERT.
"""
