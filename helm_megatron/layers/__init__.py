"""The leaves of a HELM model: modules that take and return space coordinates, [s, b, d]."""
