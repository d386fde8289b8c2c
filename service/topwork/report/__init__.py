"""Report of a revision: a self-contained HTML file."""
