"""The modules that all other folders use: errors, files, options, printing, the device, the ranks and random
numbers.
"""
