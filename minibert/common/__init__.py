"""Modules that all other folders use: errors, files, options, the console, device and ranks, random numbers.
A good order to read them is errors.py, disk.py, runtime.py, randomness.py.
"""
