"""From labels, scores and patients to the evaluation of a classifier; numpy only."""
