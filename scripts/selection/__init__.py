"""What page summaries choose and estimate, judged on recorded queries, keys and values; no server."""
