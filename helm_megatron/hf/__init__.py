"""HELM as a Hugging Face model, and conversion of checkpoints to it and back.

`configuration_helm`, `modeling_helm` and the files that they import travel with every exported
checkpoint; they need torch and transformers only.
"""
