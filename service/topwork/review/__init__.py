"""Review queue: doubtful images are kept for a label, if the policy of their model says so."""
