"""The nodes of a cluster, looked at before a job trains on them."""
