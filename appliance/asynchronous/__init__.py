"""Requests that are answered later: what is kept of them, and the webhooks that tell of their end."""
