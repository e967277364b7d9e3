"""Long-context recall: generated tasks, real text around them, and a runner for OpenAI-compatible servers."""
