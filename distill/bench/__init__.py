"""`python -m distill.bench`: benchmark speed and memory of this package's steps against other packages.

`comparisons.py` declares comparisons, contestants and goals. Each measurement is a separate process
(`child.py`) with its own memory. `running.py` runs contestants in turn, `report.py` writes the results."""
