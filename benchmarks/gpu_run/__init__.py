"""What a machine with a GPU is asked once: do the kernels compute what they should there, and how long do they take."""
