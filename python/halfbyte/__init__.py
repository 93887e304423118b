"""Runs transformers whose weights take half a byte each."""
