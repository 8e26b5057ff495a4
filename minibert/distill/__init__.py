"""Computes the losses of all distillation methods, and builds the students. A file with the name of a method
has the loss of this method. losses.py, attention_loss.py and vocab_loss.py have loss terms that several
methods use.

Read methods.py (the table of all methods) first, then distilbert.py, losses.py and vocab_loss.py. Then read
the file of the method that you want to understand. students.py builds a student from its teacher.
"""
