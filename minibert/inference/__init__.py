"""Inference: predictions and embeddings of texts, and a faster copy of a model.

Read predict.py, then fast_encoder.py and packed_linear.py.
"""
