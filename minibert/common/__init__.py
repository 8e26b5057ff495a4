"""Used by all other folders: errors, files, options, the console, device and ranks, random numbers.

Read errors.py and disk.py, then runtime.py and randomness.py.
"""
