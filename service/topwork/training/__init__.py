"""Training without torch, shared by fit and every change: embed photos, publish a revision."""
