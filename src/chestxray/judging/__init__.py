"""Bundle and labelled films to a report, or to a bundle calibrated anew; any table of scores to a report."""
