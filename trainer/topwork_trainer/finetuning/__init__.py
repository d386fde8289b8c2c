"""Fine-tuning of the last stages of a backbone on the photos. The modules import torch."""
