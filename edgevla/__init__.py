"""EdgeVLA: run a trained robot policy on the robot's own computer, on time, without PyTorch."""

__version__ = "0.1.0"
