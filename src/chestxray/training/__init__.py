"""From pack to run to bundle. The only package that imports torch."""
