"""The decoder in PyTorch, readable from top to bottom like a paper.

It knows nothing of training, devices or distribution.
"""
