"""The parts of a training run. A good order to read the files is step.py, optim.py, models.py, run_folder.py,
checkpoint.py, evaluate.py.
"""
