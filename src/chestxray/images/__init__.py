"""From bytes to pixels to the network's input. Pillow decodes; numpy does the rest."""
