"""Contains the commands of bench.py, each in its own file: `bench.py train` is in train.py. Read turns.py
first: it runs and times the compared programs.
"""
