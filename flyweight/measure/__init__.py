"""Judging a model through the small protocol that ``flyweight.load`` returns.

Quality (bits per byte) here; what other compressors reach on the same bytes, beside it.
"""
