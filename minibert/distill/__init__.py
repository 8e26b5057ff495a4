"""Builds students, and computes the losses of all distillation methods. Read first methods.py, the table of
the pre-training methods. Then read distilbert.py, losses.py, vocab_loss.py and the file of your method.
task_methods.py has the table of the fine-tuning methods.
"""
