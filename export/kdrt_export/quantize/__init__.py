"""Weights in fewer bits.

Its files:

    int8_weights  weights as bytes
"""
