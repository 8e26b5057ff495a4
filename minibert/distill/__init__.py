"""The losses of all methods. A file has the loss of one method, or of two related methods. losses.py,
attention_loss.py and vocab_loss.py have the terms that several methods use.

A good order to read the files is methods.py (the table of all methods), distilbert.py (the triple loss),
losses.py, vocab_loss.py, and then the file of the method that you want to understand. students.py builds a
student from its teacher.
"""
