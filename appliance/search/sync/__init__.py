"""Collections that follow a feed of products: fetched, compared with what is there, the difference applied.

A run reads the whole feed before it changes anything: one that breaks off, or cannot be read to its end,
changes nothing, and one that has lost many of its items waits until somebody says that this is right. What
was made of an item is remembered beside its record as keyed hashes, so that a run which is repeated, or was
interrupted, does only what is left.
"""
