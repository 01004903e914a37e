"""Datasets: the only place where an image may rest, sealed under its customer's key."""
