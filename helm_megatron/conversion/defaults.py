"""Defaults that the command line shows, before anything slow is imported."""

# Bytes of one safetensors file.
MAX_SHARD_BYTES = 5 * 10**9
# How near to the flat origin a HELM-D made of Llama's weights starts.
WARM_START_SCALE = 1e-3
