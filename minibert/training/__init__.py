"""The parts of a training run: the optimiser step, the optimisers, the checkpoints and the folder of the run.

A good order to read the files is step.py, optim.py, models.py, run_folder.py, checkpoint.py, evaluate.py.
mobilebert_stages.py is for the method mobilebert only. summary.py and plots.py make the tables and figures at
the end of a run.
"""
