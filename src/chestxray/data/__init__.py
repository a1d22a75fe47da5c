"""From files to a manifest to a pack."""
