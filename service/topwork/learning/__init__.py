"""From exemplars to a head, and an honest account of it: what fit and AddClass have in common."""
