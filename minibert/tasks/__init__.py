"""Fine-tuning on tasks: GLUE, IMDb, SQuAD and CSV files, their data, their metrics.

Read specs.py (every task as data), official_files.py and csv_files.py (reading them), splits.py, metrics.py;
for SQuAD squad.py and squad_windows.py.
"""
