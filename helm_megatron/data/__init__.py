"""From text to the .bin/.idx files that Megatron trains on.

Importing this package imports neither torch nor Megatron: the preprocessing workers must start
quickly.
"""
