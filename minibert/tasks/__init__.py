"""Fine-tuning on tasks: the data and the metrics of GLUE, IMDb, SQuAD and CSV files.

Read these files in this order: specs.py describes every task. official_files.py and csv_files.py read the
files of a task. splits.py tokenises the texts and computes a model's scores, with the metrics of metrics.py.
squad.py and squad_windows.py are for SQuAD only.
"""
