"""Contains the commands of bench.py, one file for each command: `bench.py train` is in train.py. Read
turns.py first. It runs and times the programs that a command compares.
"""
