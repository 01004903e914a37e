"""Recognition: from the bytes of an image to labels, vectors and features."""
