"""Measurements of speed, memory and sizes, plans, and tables of finished runs. No other folder imports this
folder.

Read turns.py first: it times two programs in turns. Then read the file of a command: `bench.py train` is in
train.py, and so on.
"""
