"""What a codec does outside `jit`: packing bits, entropy coding and the container, on the host."""
