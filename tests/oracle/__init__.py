"""What halfbyte is compared with: tiny checkpoints made live by the reference packages, and float64 runs of them."""
