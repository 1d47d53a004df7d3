"""The commands of tools/ and `helm-megatron`: flags are parsed before what is slow is imported."""
