"""Tables and plots of the documentation, drawn from result files."""
