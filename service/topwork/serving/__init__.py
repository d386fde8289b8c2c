"""Classify: admission, fair queue, scheduler, and the models in memory."""
