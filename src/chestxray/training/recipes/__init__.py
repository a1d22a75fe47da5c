"""Training recipes as TOML, one file a recipe."""
