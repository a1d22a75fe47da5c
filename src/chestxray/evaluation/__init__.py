"""Labels, scores and patients -> what may be said about a classifier; numpy only."""
