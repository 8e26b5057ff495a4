"""The commands of bench.py: measurements of speed and memory, sizes, plans, and tables of finished runs.

turns.py runs the compared programs alternately and measures their times, so read turns.py first. The command
`bench.py train` is in train.py, and so on.
"""
