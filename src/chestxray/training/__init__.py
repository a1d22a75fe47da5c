"""Pack -> run -> bundle. The only home of torch."""
