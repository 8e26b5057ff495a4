"""The modules that all other folders use: errors, files, options, printing, the device, the ranks and random
numbers. A good order to read the modules is errors.py, disk.py, runtime.py, randomness.py.
"""
