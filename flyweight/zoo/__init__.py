"""The published models, one TOML file each, and what a model weighs by its shapes, without torch.

A file says what the architecture computes; initialisation is the spec's default, since a published
model's weights come from its checkpoint.
"""
