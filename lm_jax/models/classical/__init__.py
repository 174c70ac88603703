"""Models that are counted or summed exactly: n-grams and hidden Markov models."""
