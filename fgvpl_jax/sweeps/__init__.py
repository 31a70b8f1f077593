"""Many runs made: the cells of a sweep and the workers that run them."""
