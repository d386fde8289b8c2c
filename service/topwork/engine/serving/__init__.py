"""What answers Classify: from encoded images to predictions, every core at work."""
