"""What is minimised: one file a method, and the losses they are made of.

Read distilbert.py (the triple loss), losses.py, vocab_loss.py; then the method that you want. students.py
says how a student is cut out of its teacher.
"""
