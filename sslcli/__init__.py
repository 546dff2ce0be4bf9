"""`ssl`: self-supervised pretraining and few-label fine-tuning from the command line."""

__version__ = "0.1.0"
