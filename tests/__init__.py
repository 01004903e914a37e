"""The suite. Each folder is a kind of test; the modules beside this file are what several kinds share."""
