"""Linear mode connectivity for PyTorch Lightning."""
