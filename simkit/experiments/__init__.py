"""Experiments that end in a table: the demo, the statistics it reports, and the check of an installation."""
