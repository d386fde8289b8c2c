"""Report of a revision: one HTML file that needs nothing else."""
