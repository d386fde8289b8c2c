"""Fine-tuning of a backbone's upper stages on the photos. Its modules import torch."""
