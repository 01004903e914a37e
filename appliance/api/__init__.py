"""HTTP: the cloud's wire format on the public listeners, `/appliance/v1` for what the cloud does not have.

`server` opens the listeners, `connections` admits peers, `gate` takes one request from its first byte to its
access line, `routes` is the table, `body` the only reader of bodies; the families answer.
"""
