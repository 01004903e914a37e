"""Datasets as other programs write and read them: archives of images and what is said about these."""
