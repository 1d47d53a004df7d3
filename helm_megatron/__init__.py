"""HELM: fully hyperbolic language models as leaves of Megatron-Core."""

__version__ = "0.1.0"
