"""Studies on real weights and text: retrieval, hit rates, attention mass, locality of selections."""
