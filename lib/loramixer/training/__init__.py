"""Training: stage 1 (experts) and stage 2 (routers), both on the stock ``transformers.Trainer``."""
