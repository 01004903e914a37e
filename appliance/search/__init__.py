"""Visual search: collections of vectors and metadata, exact answers first, graphs where they pay.

The rows in the ledger are the truth, each collection's sealed under a key of its own. Everything in RAM
(vectors, filter columns) is loaded from them, and a graph in the child process is a cache that may be lost at
any moment: without it the answers are exact.
"""
