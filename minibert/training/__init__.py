"""The machinery of a run: one optimiser step, optimisers, checkpoints, the folder of the run.

Read step.py and optim.py, then run_folder.py and checkpoint.py, then evaluate.py.
"""
