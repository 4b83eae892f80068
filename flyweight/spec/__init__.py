"""What a model and a run are: the only schema, typed and without torch.

Everything the command line, the TOML files and the docs say derives from these types.
"""
