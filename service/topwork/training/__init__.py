"""Training without torch, shared by fit and changes: embedding and publication."""
