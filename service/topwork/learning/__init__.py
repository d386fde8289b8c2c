"""Learning: from exemplars to a head with cross-validated metrics; used by fit and AddClass."""
