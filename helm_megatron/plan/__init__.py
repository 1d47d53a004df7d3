"""What a recipe needs of a cluster: memory, arithmetic and communication of every layout."""
