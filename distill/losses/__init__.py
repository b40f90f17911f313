"""Building blocks of objectives: token losses (`divergence`) and token weights (`weights`).

Both are pure functions. A function's parameter names declare the signals that it needs (`signals`). Signals
that no function needs are not computed, and their models are not loaded.
"""
