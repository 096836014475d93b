"""Several architectures under one trainer on one task: ``python -m train.compare``."""
