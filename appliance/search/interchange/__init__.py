"""Whole collections as other programs write and read them: JSON lines, and arrays with JSON lines beside."""
