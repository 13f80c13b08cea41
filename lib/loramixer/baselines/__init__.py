"""Other mixtures of LoRA experts in their published form, to compare with."""
