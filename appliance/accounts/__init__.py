"""Who may do what, and the record of what was done: customers, tokens, agreements, keys, audit."""
