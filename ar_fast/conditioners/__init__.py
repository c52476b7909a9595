"""Autoregressive networks as lists of steps: evaluated one variable at a time, inverted, and the inverse's gradient."""
