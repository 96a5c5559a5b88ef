"""The programs take seconds to import, and each is run once, in a process of its own."""

collect_ignore = ["lightning_run.py", "transformers_run.py"]
