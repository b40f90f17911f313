"""`python -m distill.bench`: speed and memory of this package's steps beside other people's, in one run.

`comparisons.py` declares who is compared with whom and what is to be reached; each measurement is a process
of its own (`child.py`), so that none inherits another's memory; `running.py` takes them in turn; `report.py`
writes what came of it."""
