"""What a revision learnt and how good it is, as one HTML file that needs nothing else."""
