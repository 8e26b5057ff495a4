"""Contains the commands of bench.py. Each command has its own file: `bench.py train` is in train.py, and so
on.

Read turns.py first: it runs the compared programs alternately and measures their times.
"""
