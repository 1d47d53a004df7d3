"""Studies: variants of a model, trained under equal conditions, compared by statistics."""
