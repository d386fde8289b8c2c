"""Learning: exemplars in, a head with cross-validated metrics out; fit and AddClass share it."""
