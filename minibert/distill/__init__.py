"""Computes the losses of all distillation methods. Read methods.py (the table of the pre-training methods)
first, then distilbert.py, losses.py and vocab_loss.py, and then the file of the method that you want to
understand. task_methods.py has the table of the fine-tuning methods.
"""
