"""The commands of bench.py: measurements of speed and memory, sizes, plans, and tables of finished runs.

Read turns.py first, which runs several programs in turns and times them. Then read the file of a command: the
command `bench.py train` is in train.py, and so on. No other folder imports this folder.
"""
