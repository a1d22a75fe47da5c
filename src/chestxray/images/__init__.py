"""Bytes -> pixels -> the network's input. Pillow decodes, numpy does the rest."""
