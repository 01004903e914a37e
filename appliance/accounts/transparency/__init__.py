"""The audit log as a transparency log: its rows as the leaves of one Merkle tree, signed as it grows.

`merkle` is the tree of RFC 6962, `tiles` its files and `checkpoints` its signed heads as C2SP has them
(tlog-tiles, tlog-checkpoint, signed-note), `leaves` what of a row goes in. `tree` publishes, `verification`
compares it all again, without a key.
"""
