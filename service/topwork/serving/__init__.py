"""Classification: admission control, fair queue, scheduler, and registry of models in memory."""
