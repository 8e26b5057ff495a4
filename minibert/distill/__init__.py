"""The losses: one file a method, and the terms that the methods share.

Read methods.py (the table of all methods), distilbert.py (the triple loss), losses.py, vocab_loss.py; then
the method that you want. students.py makes a student from its teacher.
"""
