"""The radix tree's side of the page table: nodes reach pages through their slots."""
