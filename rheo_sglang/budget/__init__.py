"""How many pages a request may attend in one decode step."""
