"""Changes of models as durable operations: queue, worker, and the steps of each change."""
