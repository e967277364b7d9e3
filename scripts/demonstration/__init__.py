"""The demonstration that demo.py runs inside its environment."""
