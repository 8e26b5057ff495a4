"""The machinery of a run: one optimiser step, optimisers, checkpoints, the folder of the run.

Read step.py and optim.py, then models.py, run_folder.py and checkpoint.py, then evaluate.py. options.py has
the options of train.py, summary.py and plots.py what it shows at its end.
"""
