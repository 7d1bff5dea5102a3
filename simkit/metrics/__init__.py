"""Measures of similarity, one per file: the formula and its source on top, prepare once per layer, score once per pair."""
