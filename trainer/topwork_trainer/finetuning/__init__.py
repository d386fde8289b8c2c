"""How a backbone is thawed and tuned on the photos. Its modules import torch."""
