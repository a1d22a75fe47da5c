"""Films that show no patient: drawn chests, their faults, and pictures that no model should answer."""
