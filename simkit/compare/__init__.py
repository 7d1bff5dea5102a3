"""Many representations -> a matrix: from arrays, from streams, from models."""
