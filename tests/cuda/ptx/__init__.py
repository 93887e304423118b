"""An interpreter of the PTX that nvcc emits for our kernels: a second opinion on what the compiler was really given.

The emulator (tests/cuda/emulator) never sees nvcc's output nor the inline PTX of device.h; this does. Only the
instructions that the kernels use are known, any other stops the run with its text.
"""
