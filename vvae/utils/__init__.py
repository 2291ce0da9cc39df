"""Entry points of the package under the names that its users import."""
