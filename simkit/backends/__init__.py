"""Backends: the same ops in NumPy (the specification) and in native code; :mod:`.choose` is the only dispatch."""
