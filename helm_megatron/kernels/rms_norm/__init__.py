"""LorentzRMSNorm, which is RMSNorm of space coordinates."""
