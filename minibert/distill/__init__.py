"""Computes the losses of all distillation methods. The loss of a method is in the file with its name (mlm:
distilbert.py, minilmv2: minilm.py, kd and pkd: task_kd.py). losses.py, attention_loss.py and vocab_loss.py
have loss terms that several methods use.

Read methods.py (the table of the pre-training methods) first, then distilbert.py, losses.py and
vocab_loss.py. task_methods.py has the table of the fine-tuning methods. Then read the file of the method that
you want to understand. students.py builds students.
"""
