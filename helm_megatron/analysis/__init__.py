"""What a HELM model looks like from inside."""

# Tokens of which the hyperbolicity is computed, at a cost that grows with their number cubed; here,
# where the command line finds it without torch.
SAMPLES = 300
