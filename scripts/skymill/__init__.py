"""The library that the steps of skymill share: geometry, generation, partition, stores and the plan."""

__version__ = "0.1.0"
