"""The test command's parts: steps as data, their runner, what pytest says while it runs, and the summary."""
