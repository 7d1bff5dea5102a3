"""Accumulators for streams of rows: plain data with lawful ``empty``, ``update``, ``merge`` and ``finish``."""
