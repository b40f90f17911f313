"""The objectives' building blocks: token losses (`divergence`) and token weights (`weights`).

Both are pure functions. What a function asks for is its signature: `signals` reads it, the objective passes
just that, and what nobody asks for is neither computed nor loaded.
"""
