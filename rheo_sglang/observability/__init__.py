"""What operators see of a running server: one snapshot of its numbers, as metrics, in the log and in /server_info."""
