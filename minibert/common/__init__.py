"""The modules that all other folders use. They handle errors, files, options, printing, the device, the ranks
and random numbers. A good order to read the modules is errors.py, disk.py, runtime.py, randomness.py.
"""
