"""What fit and every change share, without torch: embed photos, publish a revision."""
