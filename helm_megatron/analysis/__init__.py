"""What a HELM model looks like from inside."""
