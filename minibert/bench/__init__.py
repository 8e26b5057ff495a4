"""The commands of bench.py: measurements of speed and memory, sizes, plans, and tables of finished runs.

Read turns.py first. It runs the compared programs alternately and measures their times. Then read the file of
a command: the command `bench.py train` is in train.py, and so on.
"""
