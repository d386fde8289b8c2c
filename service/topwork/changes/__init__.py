"""Changes of models as durable operations: intake, queue, worker, and the steps of a change."""
