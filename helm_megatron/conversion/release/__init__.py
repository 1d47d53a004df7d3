"""The authors' released checkpoints."""
