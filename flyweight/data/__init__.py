"""Text to a deterministic stream of tokens: sources, cleaning, shards, order, batches.

The order has no state: which tokens step s sees is a function of the seed and of s alone.
"""
