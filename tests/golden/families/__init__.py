"""Tiny pretrained models, a module a family, each with ``CASES``: name -> function that writes a directory (reference.py)."""
