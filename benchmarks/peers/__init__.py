"""Context first, question after it, the cache compressed in between: configs beside the methods of kvpress."""
