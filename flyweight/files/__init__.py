"""Reading and writing models and runs: one module a format, integrity included.

Everything is written so that a crash at any instant leaves the last complete version usable.
"""
