"""Budget rules offline: a real model's steps as pages, and what each rule selects of them."""
