"""Fine-tuning on tasks: the data and the metrics of GLUE, IMDb, SQuAD and CSV files.

Read specs.py first: it describes every task. official_files.py and csv_files.py read the files of a task.
splits.py tokenises the texts and computes a model's scores.
"""
