"""Running a model: predictions and embeddings of texts, and a faster copy of an encoder.

Read predict.py, then fast_encoder.py and packed_linear.py.
"""
