"""Fine-tuning on tasks: the data and the metrics of GLUE, IMDb, SQuAD and CSV files.

A good order to read the files is specs.py (which describes every task), official_files.py and csv_files.py
(which read the files of a task), splits.py (which tokenises the texts and computes a model's scores) and
metrics.py. squad.py and squad_windows.py are for SQuAD only.
"""
