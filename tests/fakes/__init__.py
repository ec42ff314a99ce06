"""Fakes of the libraries that need a GPU. Each is checked against the real library's names and signatures."""
