"""Text to token ids and back: bytes, and BPE and unigram through the `tokenizers` library.

Every tokenizer here has one form on disk, a `tokenizer.json` that other programs read too.
"""
