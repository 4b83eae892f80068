"""The command line: one file a command, thin, importing what it needs when it runs.

Standard output carries a command's result alone; notices and progress go to standard error.
"""
