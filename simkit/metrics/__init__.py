"""Measures of similarity, one per file: formula and source on top, prepare once per layer, score once per pair."""
