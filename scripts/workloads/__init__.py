"""Sessions of real text, as users and agents hold them with a served model."""
