"""Fine-tuning on tasks: the data and the metrics of GLUE, IMDb, SQuAD and CSV files.

Read these files in this order: specs.py describes every task. official_files.py and csv_files.py read the
files of a task. splits.py tokenises them, and metrics.py has the scores. SQuAD also needs squad.py and
squad_windows.py.
"""
