"""Runs trained models. Read predict.py first, then fast_encoder.py and packed_linear.py."""
