"""Measuring: speed, memory, sizes, plans, and tables of finished runs. No other folder imports it.

Read turns.py (how two programs are timed fairly), then the file named like the command of bench.py.
"""
