"""Inference. Read predict.py, then fast_encoder.py and packed_linear.py."""
