"""Pure, jittable array functions, one idea a file, each naming its paper, section and equation."""
