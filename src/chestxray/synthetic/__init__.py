"""Pictures of no patient: synthetic films, their faults, and pictures that a model must refuse."""
